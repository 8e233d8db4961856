//! Proofs of who a process is, where it has something better than a join token: a certificate of another
//! authority, a service account token of Kubernetes, or credentials of AWS.
//!
//! What is made here the registry judges. A proof is made anew for each request, from what is in files or
//! the environment then, for these change while a process lives.

pub mod aws;
pub mod x509;

use std::path::PathBuf;
use std::time::SystemTime;

use pillion_xds::mesh::KubernetesProof;
use pillion_xds::mesh::issue_request::Proof;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::resolve::Resolver;
use crate::tls;

/// What a process can prove itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// A certificate (PEM, leaf first) and its key.
    X509 {
        /// The chain.
        certificate: PathBuf,
        /// The leaf's key.
        key: PathBuf,
    },
    /// A projected service account token.
    Kubernetes {
        /// The token's file.
        token: PathBuf,
    },
    /// AWS credentials, as SDKs find them in the environment or at the container's endpoint.
    Aws,
}

/// Why no proof could be made: environment and files, all of which may be right a moment later.
#[derive(Debug, thiserror::Error)]
#[error("--attest {method}: {reason}")]
pub struct AttestError {
    method: &'static str,
    reason: String,
}

impl Attestation {
    /// As in flags, logs and rules.
    pub fn method(&self) -> &'static str {
        match self {
            Self::X509 { .. } => "x509",
            Self::Kubernetes { .. } => "kubernetes",
            Self::Aws => "aws",
        }
    }

    /// Makes a proof for this certificate request of this node.
    ///
    /// # Errors
    ///
    /// [`AttestError`] names what is missing or unreadable.
    pub async fn prove(&self, csr: &[u8], node: &str, resolver: &Resolver) -> Result<Proof, AttestError> {
        let now = SystemTime::now();
        let made = match self {
            Self::X509 { certificate, key } => x509::sign(certificate, key, csr, node, now).map(Proof::X509),
            Self::Kubernetes { token } => std::fs::read_to_string(token)
                .map(|token| Proof::Kubernetes(KubernetesProof { token: token.trim().to_owned() }))
                .map_err(|error| format!("read {}: {error}", token.display())),
            Self::Aws => {
                let made = async {
                    let credentials = aws::Credentials::find(resolver).await?;
                    Ok(aws::sign(&credentials, &aws::Sts::from_environment()?, csr, now))
                };
                made.await.map(Proof::Aws)
            }
        };
        made.map_err(|reason| AttestError { method: self.method(), reason })
    }
}

/// SHA-256 of the public keys of root certificates (PEM): what the registry is verified by.
///
/// # Errors
///
/// What is wrong with the text.
pub fn pins(roots: &[u8]) -> Result<Vec<[u8; 32]>, String> {
    let mut pins = Vec::new();
    for root in CertificateDer::pem_slice_iter(roots) {
        let root = root.map_err(|error| error.to_string())?;
        pins.push(tls::public_key_sha256(&root).map_err(|error| error.to_string())?);
    }
    if pins.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(pins)
}
