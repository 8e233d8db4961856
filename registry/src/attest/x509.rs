//! Proof by a certificate of another authority.

use std::path::Path;
use std::sync::Arc;

use pillion_model::tls::DataSource;
use pillion_net::attest::x509::{AGE_MAX, verify};
use pillion_net::tls::{PeerCertificate, Roots, load_roots};
use pillion_xds::mesh::issue_request::Proof;

use super::seen::Seen;
use super::{Attestor, Bound, Method, Proven, Refusal};

pub(super) struct X509 {
    roots: Arc<Roots>,
    seen: Seen,
}

impl X509 {
    pub(super) fn open(ca: &Path) -> Result<Self, String> {
        let source = DataSource::File(ca.display().to_string());
        let roots = load_roots(&source).map_err(|error| error.to_string())?;
        Ok(Self { roots, seen: Seen::default() })
    }
}

#[async_trait::async_trait]
impl Attestor for X509 {
    fn method(&self) -> Method {
        Method::X509
    }

    async fn prove(&self, proof: &Proof, request: &Bound<'_>) -> Result<Proven, Refusal> {
        let refuse = |reason: String| Method::X509.refuse(reason);
        let Proof::X509(proof) = proof else { return Err(refuse("it is no certificate".to_owned())) };
        if proof.chain.len() > CHAIN_MAX {
            return Err(refuse(format!("want {CHAIN_MAX} certificates at most")));
        }
        let peer = verify(proof, &self.roots, request.csr, &request.node, request.now)
            .map_err(|error| refuse(error.to_string()))?;
        // Either way off is allowed, so it could be good for twice as long.
        self.seen.note(&proof.signature, request.now, AGE_MAX * 2).map_err(|reason| refuse(reason.into()))?;
        Ok(Proven { method: Method::X509, facts: facts(&peer) })
    }
}

/// URI names, DNS names and organizational units.
fn facts(peer: &PeerCertificate) -> Vec<String> {
    let uris = peer.uri_sans.iter().map(|name| format!("uri:{name}"));
    let names = peer.dns_sans.iter().map(|name| format!("dns:{}", name.to_ascii_lowercase()));
    let units = peer.organizational_units.iter().map(|name| format!("ou:{name}"));
    uris.chain(names).chain(units).collect()
}

const CHAIN_MAX: usize = 8;
