//! Certificates that sign: roots, and what they are cross-signed with. Values in, certificates out.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use pillion_config::DurationText;
use pillion_model::name::{SpiffeId, TrustDomain};
use pillion_net::tls::{PeerCertificate, hex, public_key_sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::FromDer;

use super::CaError;

/// A certificate of an authority with its key.
pub(super) struct Signer {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// SHA-256 of the public key.
    pub(super) hash: [u8; 32],
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf is made out to.
pub(super) struct Subject<'a> {
    pub(super) id: &'a SpiffeId,
    /// Becomes the common name: what a single instance is revoked by.
    pub(super) instance: Option<&'a str>,
    pub(super) dns: &'a [String],
    pub(super) ips: &'a [IpAddr],
}

/// A leaf that was signed.
pub(super) struct Leaf {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_after: SystemTime,
    pub(super) serial: String,
}

impl Signer {
    /// A new root. All roots of a trust domain have one name: a root that another one signs counts as
    /// self-issued then (RFC 5280, section 6.1), and no limit on the length of paths stands in its way.
    pub(super) fn root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let mut params = authority(root_name(trust_domain), now, now + ROOT_LIFETIME, INTERMEDIATES);
        params.serial_number = Some(serial());
        let certificate = params.self_signed(&key)?;
        Self::read(certificate.der().clone(), key)
    }

    /// An authority below this one, with a new key: it signs leaves only.
    pub(super) fn intermediate(
        &self,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let (domain, serial) = (trust_domain.as_str(), serial());
        let mut name = organization();
        // Each has a name of its own, so that nobody takes one for another.
        let number = hex(&serial.to_bytes()[..4]);
        name.push(DnType::CommonName, format!("{} intermediate {number}", &domain[..domain.len().min(40)]));
        let mut params = authority(name, now, (now + lifetime).min(self.not_after), 0);
        params.serial_number = Some(serial);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Self::read(certificate, key)
    }

    /// A certificate with its key, as kept.
    pub(super) fn read(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, CaError> {
        let damaged = |part: &str, reason: String| CaError::Material(format!("{part}: {reason}"));
        let facts = PeerCertificate::parse(std::slice::from_ref(&certificate))
            .map_err(|error| damaged("root certificate", error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| damaged("root certificate", error.to_string()))?;
        if parsed.public_key().subject_public_key.data[..] != *key.der_bytes() {
            return Err(damaged("root key", "it does not belong to the certificate".to_owned()));
        }
        let hash = key_hash(&certificate)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { not_before: facts.not_before, not_after: facts.not_after, hash, certificate, issuer })
    }

    /// Says so where certificates cannot live as long as they should.
    pub(super) fn warn_of_its_end(&self, leaf_lifetime: Duration, now: SystemTime) {
        let left = self.not_after.duration_since(now).unwrap_or_default();
        if left < leaf_lifetime {
            let (left, wanted) = (DurationText(left), DurationText(leaf_lifetime));
            tracing::warn!(%left, %wanted, "the authority ends before the certificates that it is to sign: these end with it");
        }
    }

    /// The key, PKCS#8.
    pub(super) fn key(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    /// Says of another root that it is one of the mesh: whoever knows only this one reaches the other.
    pub(super) fn cross_sign(
        &self,
        other: &Self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, CaError> {
        let not_after = other.not_after.min(self.not_after);
        let mut params = authority(root_name(trust_domain), now, not_after, CROSS_SIGNED);
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(other.issuer.key(), &self.issuer)?.der().clone())
    }

    /// Signs a leaf: one SPIFFE id, for clients and servers, never past the signer's own end.
    pub(super) fn leaf(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Leaf, CaError> {
        let text = |name: &str| name.to_owned().try_into();
        let not_after = (now + lifetime).min(self.not_after);
        let serial = serial();
        let mut params = CertificateParams::default();
        params.distinguished_name = organization();
        if let Some(instance) = subject.instance {
            params.distinguished_name.push(DnType::CommonName, instance);
        }
        params.subject_alt_names.push(SanType::URI(text(&subject.id.to_string())?));
        for name in subject.dns {
            params.subject_alt_names.push(SanType::DnsName(text(name)?));
        }
        params.subject_alt_names.extend(subject.ips.iter().copied().map(SanType::IpAddress));
        params.not_before = (now - BACKDATED.min(lifetime / 10)).into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial.clone());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?.der().clone();
        Ok(Leaf { certificate, not_after, serial: hex(&serial.to_bytes()) })
    }
}

/// What join tokens pin of a certificate.
pub(super) fn key_hash(certificate: &CertificateDer<'_>) -> Result<[u8; 32], CaError> {
    public_key_sha256(certificate).map_err(|error| CaError::Material(error.to_string()))
}

/// A certificate that signs others.
fn authority(
    name: DistinguishedName,
    now: SystemTime,
    not_after: SystemTime,
    path_length: u8,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = (now - BACKDATED_ROOT).into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The public key of a certificate request, after its signature (proof of possession) was checked.
pub(super) fn public_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, String> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(format!("it has {} bytes; want at most {CSR_BYTES_MAX}", csr.len()));
    }
    let (rest, request) = x509_parser::certification_request::X509CertificationRequest::from_der(csr)
        .map_err(|error| format!("it is no PKCS#10 request in DER: {error}"))?;
    if !rest.is_empty() {
        return Err(format!("{} bytes follow it", rest.len()));
    }
    let key = &request.certification_request_info.subject_pki;
    let found = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| WANT_KEY.to_owned())?;
    let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !accepted.contains(&found.algorithm()) {
        return Err(WANT_KEY.to_owned());
    }
    request.verify_signature().map_err(|_| "its signature does not fit its public key".to_owned())?;
    Ok(found)
}

/// A subject that is not empty spares every leaf a critical name extension; the name that counts is
/// the URI.
fn organization() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Pillion");
    name
}

/// X.520 allows 64 characters.
fn root_name(trust_domain: &TrustDomain) -> DistinguishedName {
    let domain = trust_domain.as_str();
    let mut name = organization();
    name.push(DnType::CommonName, format!("{} root", &domain[..domain.len().min(59)]));
    name
}

/// 128 random bits, positive and never zero.
fn serial() -> SerialNumber {
    let mut bytes = super::token::random::<16>();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const BACKDATED_ROOT: Duration = Duration::from_secs(3600);
/// For peers whose clocks are behind; at most a tenth of the lifetime, which its half is reckoned from.
const BACKDATED: Duration = Duration::from_secs(300);
/// Authorities below a root.
const INTERMEDIATES: u8 = 1;
/// The same below a root that another one signed: verifiers that count such roots have to get past
/// those of several rotations.
const CROSS_SIGNED: u8 = 5;
const CSR_BYTES_MAX: usize = 16 * 1024;
const WANT_KEY: &str = "its key is of a kind we do not sign; want ECDSA P-256 (best), ECDSA P-384 or Ed25519";
