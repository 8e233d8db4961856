//! The root: kept in the store, and the only thing that signs. Values in, certificates out.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pillion_model::name::{SpiffeId, TrustDomain};
use pillion_net::tls::{PeerCertificate, hex};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer;

use super::{CaError, Issued};
use crate::store::{Key, Op, Space, Store, StoreError, Transaction};

/// The root certificate with its key.
pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf is made out to.
pub(super) struct Subject<'a> {
    pub(super) id: &'a SpiffeId,
    pub(super) dns: &'a [String],
    pub(super) ips: &'a [IpAddr],
}

/// The root as the store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// DER, base64.
    certificate: String,
    /// PKCS#8, base64.
    key: String,
}

impl Root {
    /// Reads the root; makes it if there is none. Of several registries that start at once on one
    /// store, one makes it and the others use it.
    pub(super) async fn load_or_make(
        store: &dyn Store,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let key = Key::new(Space::Ca, ROOT_KEY);
        loop {
            if let Some(entry) = store.load_space(Space::Ca).await?.entries.get(&key) {
                return Self::read(&entry.value);
            }
            let made = Self::make(trust_domain, now)?;
            let mut transaction = Transaction::default();
            transaction.push(Op::put(key.clone(), made)).require(key.clone(), None);
            match store.commit(transaction).await {
                Ok(_) => tracing::info!(%trust_domain, "made the certificate authority's root"),
                Err(StoreError::Conflict { .. }) => {} // another one was quicker: read it
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<Vec<u8>, CaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = organization();
        params.distinguished_name.push(DnType::CommonName, common_name(trust_domain));
        params.not_before = (now - BACKDATED_ROOT).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        params.serial_number = Some(serial());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let kept = Kept {
            certificate: STANDARD.encode(certificate.der()),
            key: STANDARD.encode(key.serialized_der()),
        };
        serde_json::to_vec(&kept).map_err(|error| CaError::Material(error.to_string()))
    }

    fn read(kept: &[u8]) -> Result<Self, CaError> {
        let damaged = |part: &str, reason: String| CaError::Material(format!("{part}: {reason}"));
        let kept: Kept = serde_json::from_slice(kept).map_err(|error| damaged("root", error.to_string()))?;
        let der = STANDARD
            .decode(kept.certificate)
            .map_err(|error| damaged("root certificate", error.to_string()))?;
        let key = STANDARD.decode(kept.key).map_err(|error| damaged("root key", error.to_string()))?;
        let key = KeyPair::try_from(key).map_err(|error| damaged("root key", error.to_string()))?;
        let certificate = CertificateDer::from(der);
        let facts = PeerCertificate::parse(std::slice::from_ref(&certificate))
            .map_err(|error| damaged("root certificate", error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| damaged("root certificate", error.to_string()))?;
        if parsed.public_key().subject_public_key.data[..] != *key.der_bytes() {
            return Err(damaged("root key", "it does not belong to the certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { not_before: facts.not_before, not_after: facts.not_after, certificate, issuer })
    }

    /// Signs a leaf: one SPIFFE id, for clients and servers, never past the root's own end.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let text = |name: &str| name.to_owned().try_into();
        let not_after = (now + lifetime).min(self.not_after);
        let serial = serial();
        let mut params = CertificateParams::default();
        params.distinguished_name = organization();
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
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued {
            chain: vec![certificate.der().clone()],
            roots: vec![self.certificate.clone()],
            not_after,
            serial: hex(&serial.to_bytes()),
        })
    }
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
fn common_name(trust_domain: &TrustDomain) -> String {
    let name = trust_domain.as_str();
    format!("{} root", &name[..name.len().min(59)])
}

/// 128 random bits, positive and never zero.
fn serial() -> SerialNumber {
    let mut bytes = super::token::random::<16>();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

const ROOT_KEY: &str = "root";
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const BACKDATED_ROOT: Duration = Duration::from_secs(3600);
/// For peers whose clocks are behind; at most a tenth of the lifetime, which its half is reckoned from.
const BACKDATED: Duration = Duration::from_secs(300);
const CSR_BYTES_MAX: usize = 16 * 1024;
const WANT_KEY: &str = "its key is of a kind we do not sign; want ECDSA P-256 (best), ECDSA P-384 or Ed25519";
