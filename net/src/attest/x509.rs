//! Proof by a certificate of another authority: its key signs the certificate request.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pillion_xds::mesh::X509Proof;
use rustls::SignatureScheme;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use webpki::EndEntityCert;

use crate::identity::unix_time;
use crate::tls::{self, PeerCertificate, PeerError, Roots};

/// Why a proof is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] PeerError),
    /// Made too long ago, or in the future.
    #[error("it was signed {} s {}; want at most {} s ago; are the clocks right?", .seconds, .way, AGE_MAX.as_secs())]
    Age {
        /// How far off.
        seconds: u64,
        /// `ago` or `ahead`.
        way: &'static str,
    },
    /// The key is not the certificate's, or something else was signed.
    #[error("the signature is not one of the certificate's key for this request")]
    Signature,
    /// A scheme that TLS does not use for this kind of key.
    #[error("signature scheme {0} is not supported; want one of TLS 1.3")]
    Scheme(u32),
}

/// Signs `csr` and `node` by the key of the certificate in these files.
pub(super) fn sign(
    certificate: &Path,
    key: &Path,
    csr: &[u8],
    node: &str,
    now: SystemTime,
) -> Result<X509Proof, String> {
    let unreadable =
        |path: &Path, error: rustls_pki_types::pem::Error| format!("read {}: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(certificate, error))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM", certificate.display()));
    }
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
    let certified = rustls::sign::CertifiedKey::from_der(chain, key_der, &tls::provider())
        .map_err(|error| format!("{} and {}: {error}", certificate.display(), key.display()))?;
    let signer = certified.key.choose_scheme(&schemes()).ok_or("the key is of a kind that cannot be used")?;
    let signed_at = seconds(now);
    let signature = signer.sign(&message(csr, node, signed_at)).map_err(|error| error.to_string())?;
    Ok(X509Proof {
        chain: certified.cert.iter().map(|der| der.to_vec()).collect(),
        signed_at,
        scheme: u16::from(signer.scheme()).into(),
        signature,
    })
}

/// Checks a proof for `csr` and `node`; gives what the certificate says.
///
/// # Errors
///
/// [`ProofError`] says what is wrong with it.
pub fn verify(
    proof: &X509Proof,
    roots: &Roots,
    csr: &[u8],
    node: &str,
    now: SystemTime,
) -> Result<PeerCertificate, ProofError> {
    let age = seconds(now).saturating_sub(proof.signed_at);
    if age.unsigned_abs() > AGE_MAX.as_secs() {
        let way = if age > 0 { "ago" } else { "ahead" };
        return Err(ProofError::Age { seconds: age.unsigned_abs(), way });
    }
    let chain: Vec<CertificateDer<'_>> =
        proof.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    tls::verify_client(&chain, roots, unix_time(now))?;
    let scheme = u16::try_from(proof.scheme).map(SignatureScheme::from).ok();
    let algorithms = tls::provider().signature_verification_algorithms;
    let found = scheme.filter(|scheme| schemes().contains(scheme)).and_then(|scheme| {
        algorithms.mapping.iter().find(|(known, _)| *known == scheme).map(|(_, algorithms)| *algorithms)
    });
    let algorithms = found.ok_or(ProofError::Scheme(proof.scheme))?;
    let unreadable = |error: webpki::Error| PeerError::Malformed { reason: error.to_string() };
    let leaf = EndEntityCert::try_from(&chain[0]).map_err(unreadable)?;
    let message = message(csr, node, proof.signed_at);
    let signed = algorithms
        .iter()
        .any(|algorithm| leaf.verify_signature(*algorithm, &message, &proof.signature).is_ok());
    if !signed {
        return Err(ProofError::Signature);
    }
    Ok(PeerCertificate::parse(&chain)?)
}

/// What is signed.
fn message(csr: &[u8], node: &str, signed_at: i64) -> Vec<u8> {
    [CONTEXT, &signed_at.to_be_bytes(), &tls::sha256(csr), node.as_bytes()].concat()
}

fn seconds(at: SystemTime) -> i64 {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Those of TLS 1.3: none with SHA-1, none with PKCS#1 padding.
fn schemes() -> [SignatureScheme; 6] {
    use SignatureScheme as S;
    [
        S::ECDSA_NISTP256_SHA256,
        S::ECDSA_NISTP384_SHA384,
        S::ED25519,
        S::RSA_PSS_SHA256,
        S::RSA_PSS_SHA384,
        S::RSA_PSS_SHA512,
    ]
}

/// So that no other signature of this key can be taken for one.
const CONTEXT: &[u8] = b"pillion attestation 1\0";
/// Either way: clocks differ.
pub const AGE_MAX: Duration = Duration::from_secs(300);
