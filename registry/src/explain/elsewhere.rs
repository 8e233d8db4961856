//! What concerns other meshes: their callers here, and their services that are called from here.

use pillion_model::cluster::Cluster;
use pillion_model::matcher::Pattern;
use pillion_model::name::{SpiffeId, TrustDomain};
use pillion_model::tls::Roots;

use super::ExplainError;

/// A caller by its identity.
pub(super) fn identity(text: &str) -> Result<SpiffeId, ExplainError> {
    let refuse = |reason: String| ExplainError::Caller { name: text.to_owned(), reason };
    let id: SpiffeId =
        text.parse().map_err(|error: pillion_model::name::NameError| refuse(error.to_string()))?;
    match id.service_name() {
        Some(_) => Ok(id),
        None => Err(refuse("is a registry, which calls no service".to_owned())),
    }
}

/// Who decides about requests to a cluster outside the mesh.
pub(super) fn decides(cluster: &Cluster) -> String {
    let validation = cluster.tls.as_ref().and_then(|tls| tls.validation.as_ref());
    let federated =
        validation.filter(|it| matches!(&it.roots, Roots::Secret(name) if name.starts_with("spiffe://")));
    let service = federated.and_then(|validation| match &validation.names.first()?.matcher.pattern {
        Pattern::Exact(id) => Some(id),
        _ => None,
    });
    match service {
        Some(id) => format!("served by {id}: that mesh decides by its policies"),
        None => "outside the mesh: nothing of ours decides there".to_owned(),
    }
}

/// Why a caller of another mesh gets no further than the handshake, if it does not.
pub(super) fn barred(
    caller: Option<&SpiffeId>,
    own: &TrustDomain,
    exported_to: &[TrustDomain],
) -> Option<String> {
    let domain = caller?.trust_domain();
    let stranger = domain != own && !exported_to.contains(domain);
    stranger.then(|| format!("its trust domain {domain} is one to which the service is not exported"))
}
