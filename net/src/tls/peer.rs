//! What a certificate says about a peer.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use pillion_model::name::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Name;

use super::verify::PeerError;

/// The facts of a peer's certificate that policies, headers and logs use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// URI names, in order.
    pub uri_sans: Vec<String>,
    /// DNS names, in order.
    pub dns_sans: Vec<String>,
    /// IP addresses, in order.
    pub ip_sans: Vec<IpAddr>,
    /// Mail addresses, in order.
    pub email_sans: Vec<String>,
    /// The subject as RFC 2253 writes it, such as `CN=web,O=Shop`; empty for most SVIDs.
    pub subject: String,
    /// The last common name of the subject: the instance, in certificates of the mesh.
    pub common_name: Option<String>,
    /// The organizational units of the subject, in order.
    pub organizational_units: Vec<String>,
    /// The serial number, lower-case hex.
    pub serial: String,
    /// SHA-256 of the leaf, 64 hex digits.
    pub sha256_hex: String,
    /// As sent, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    pub(super) usage: Usage,
}

/// What the leaf may be used for, as far as SPIFFE cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) ca: bool,
    pub(super) signs: bool,
}

impl PeerCertificate {
    /// Reads the leaf of `chain`.
    ///
    /// # Errors
    ///
    /// [`PeerError::Empty`] or [`PeerError::Malformed`].
    pub fn parse(chain: &[CertificateDer<'_>]) -> Result<Self, PeerError> {
        let leaf = chain.first().ok_or(PeerError::Empty)?;
        let malformed = |reason: String| PeerError::Malformed { reason };
        let (rest, certificate) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow the certificate", rest.len())));
        }
        let mut peer = Self {
            uri_sans: Vec::new(),
            dns_sans: Vec::new(),
            ip_sans: Vec::new(),
            email_sans: Vec::new(),
            subject: rfc2253(certificate.subject()),
            common_name: certificate
                .subject()
                .iter_common_name()
                .last()
                .and_then(|name| name.as_str().ok())
                .map(str::to_owned),
            organizational_units: certificate
                .subject()
                .iter_organizational_unit()
                .filter_map(|name| name.as_str().ok())
                .map(str::to_owned)
                .collect(),
            serial: hex(certificate.raw_serial()),
            sha256_hex: hex(&sha256(leaf)),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            not_before: at(certificate.validity().not_before.timestamp()),
            not_after: at(certificate.validity().not_after.timestamp()),
            usage: usage(&certificate).map_err(malformed)?,
        };
        peer.read_names(&certificate).map_err(malformed)?;
        Ok(peer)
    }

    /// Every name that authorization may match: URIs, DNS names, then the subject, as Envoy orders
    /// them.
    pub fn rbac_names(&self) -> Vec<String> {
        let names = self.uri_sans.iter().chain(&self.dns_sans).chain(std::iter::once(&self.subject));
        names.filter(|name| !name.is_empty()).cloned().collect()
    }

    /// The mesh identity: the only URI name, if it is one of the mesh's forms.
    pub fn spiffe_id(&self) -> Option<SpiffeId> {
        match &self.uri_sans[..] {
            [only] => only.parse().ok(),
            _ => None,
        }
    }

    /// The instance that a certificate of the mesh was issued to, `<namespace>/<service>/<instance-id>`.
    pub fn instance(&self) -> Option<String> {
        let id = self.spiffe_id()?;
        let (service, name) = (id.service_name()?, self.common_name.as_ref()?);
        Some(format!("{}/{}/{name}", service.namespace(), service.service()))
    }

    /// How long the leaf is valid from beginning to end.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    fn read_names(&mut self, certificate: &X509Certificate<'_>) -> Result<(), String> {
        let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => self.uri_sans.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => self.dns_sans.push((*dns).to_owned()),
                GeneralName::RFC822Name(mail) => self.email_sans.push((*mail).to_owned()),
                GeneralName::IPAddress(bytes) => self.ip_sans.extend(ip(bytes)),
                GeneralName::Invalid(..) => return Err("an alternative name cannot be read".to_owned()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// SHA-256 of a certificate's public key (its SubjectPublicKeyInfo, DER): what join tokens pin.
///
/// # Errors
///
/// [`PeerError::Malformed`] when `certificate` is none.
pub fn public_key_sha256(certificate: &CertificateDer<'_>) -> Result<[u8; 32], PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PeerError::Malformed { reason: error.to_string() })?;
    Ok(sha256(parsed.public_key().raw))
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn usage(certificate: &X509Certificate<'_>) -> Result<Usage, String> {
    let text = |error: x509_parser::error::X509Error| error.to_string();
    let ca = certificate.basic_constraints().map_err(text)?.is_some_and(|extension| extension.value.ca);
    let signs = certificate
        .key_usage()
        .map_err(text)?
        .is_some_and(|extension| extension.value.key_cert_sign() || extension.value.crl_sign());
    Ok(Usage { ca, signs })
}

fn at(seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(offset)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(offset)
    };
    moment.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// RFC 2253: last attribute first, `,` between, `+` within, special characters escaped.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for rdn in name.iter_rdn() {
        let attributes: Vec<String> = rdn
            .iter()
            .map(|attribute| {
                let oid = attribute.attr_type();
                let key = x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry())
                    .map_or_else(|_| oid.to_id_string(), str::to_owned);
                format!("{key}={}", escape(attribute.as_str().unwrap_or_default()))
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        let edge = (at == 0 && (c == ' ' || c == '#')) || (at == last && c == ' ');
        if edge || ",+\"\\<>;".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Leaf, TestCa};

    #[test]
    fn names_come_in_the_order_policies_try_them() {
        let ca = TestCa::new("mesh.internal");
        let chain = ca.leaf(Leaf {
            uris: vec!["spiffe://mesh.internal/ns/shop/svc/web".into()],
            dns: vec!["web.shop".into(), "web".into()],
            ips: vec!["10.0.0.5".parse().expect("address"), "::1".parse().expect("address")],
            subject: vec![("O", "Shop, Ltd"), ("CN", "web")],
            ..Leaf::default()
        });
        let peer = PeerCertificate::parse(&chain.0).expect("well-formed");
        assert_eq!(
            peer.rbac_names(),
            ["spiffe://mesh.internal/ns/shop/svc/web", "web.shop", "web", "CN=web,O=Shop\\, Ltd"]
        );
        assert_eq!(peer.ip_sans, ["10.0.0.5".parse::<IpAddr>().expect("v4"), "::1".parse().expect("v6")]);
        assert_eq!(peer.spiffe_id().map(|id| id.to_string()), Some(peer.uri_sans[0].clone()));
        assert_eq!(peer.sha256_hex.len(), 64);
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        let ca = TestCa::new("mesh.internal");
        let (chain, _) = ca.leaf(Leaf::service("shop", "web"));
        let mut cut = chain[0].to_vec();
        cut.truncate(cut.len() / 2);
        let mut long = chain[0].to_vec();
        long.push(0);
        for bad in [Vec::new(), vec![0x30], cut, long] {
            let error = PeerCertificate::parse(&[CertificateDer::from(bad)]).expect_err("no certificate");
            assert!(matches!(error, PeerError::Malformed { .. }), "{error}");
        }
        assert!(matches!(PeerCertificate::parse(&[]), Err(PeerError::Empty)));
    }
}
