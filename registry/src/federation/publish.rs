//! The federation port: our bundle for everybody, and our exports for the registries of other meshes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use pillion_model::name::{SpiffeId, TrustDomain};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::bundle::{Bundle, unexpired};
use super::exports::exports;
use crate::ca::Authority;
use crate::catalog::Catalog;
use crate::resolve::MeshModel;

/// What the federation port speaks for. Cheap to clone.
#[derive(Clone)]
pub struct Publishing {
    /// The bundle.
    pub authority: Arc<Authority>,
    /// Whom we federate with.
    pub catalog: Arc<Catalog>,
    /// What is exported.
    pub model: watch::Receiver<Arc<MeshModel>>,
    /// Ends requests that wait.
    pub stop: CancellationToken,
}

/// `GET /`: the bundle; `GET /v1/exports`: the exports.
pub fn router(publishing: Publishing) -> Router {
    Router::new().route("/", get(bundle)).route("/v1/exports", get(told)).with_state(publishing)
}

/// Our own bundle, as others are to trust it.
pub fn own_bundle(authority: &Authority) -> Value {
    let hint = (authority.settings().leaf_lifetime / 10).min(REFRESH_HINT_MAX);
    let roots = unexpired(&authority.roots(), SystemTime::now());
    Bundle::document(&roots, authority.bundle_sequence(), hint)
}

async fn bundle(State(publishing): State<Publishing>) -> Json<Value> {
    Json(own_bundle(&publishing.authority))
}

async fn told(
    State(publishing): State<Publishing>,
    peer: Option<Extension<SpiffeId>>,
    RawQuery(query): RawQuery,
) -> Response {
    let domain = match publishing.admit(peer.map(|Extension(peer)| peer)) {
        Ok(domain) => domain,
        Err((status, reason)) => return (status, reason).into_response(),
    };
    let (since, wait) = asked(query.as_deref().unwrap_or_default());
    let end = Instant::now() + wait;
    let mut model = publishing.model.clone();
    loop {
        let exports = exports(&model.borrow_and_update().clone(), &domain);
        let version = exports.version();
        if version != since {
            let services = serde_json::to_value(&exports.services).unwrap_or_default();
            return Json(json!({"version": version, "services": services})).into_response();
        }
        tokio::select! {
            changed = timeout_at(end, model.changed()) => {
                if !matches!(changed, Ok(Ok(()))) {
                    return StatusCode::NOT_MODIFIED.into_response();
                }
            }
            () = publishing.stop.cancelled() => {
                return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response();
            }
        }
    }
}

impl Publishing {
    /// The trust domain of the registry that asks, if we federate with it.
    fn admit(&self, peer: Option<SpiffeId>) -> Result<TrustDomain, (StatusCode, String)> {
        let Some(peer) = peer else {
            let reason = "the exports are for registries of federated meshes: bring a client certificate";
            return Err((StatusCode::UNAUTHORIZED, reason.to_owned()));
        };
        let world = self.catalog.world();
        let domain = peer.trust_domain();
        let is_federated = world.resources.set.federations().any(|it| it.trust_domain == domain.as_str());
        if !peer.is_registry() || !is_federated {
            let reason = format!("{peer} is not the registry of a mesh with which this one is federated");
            return Err((StatusCode::FORBIDDEN, reason));
        }
        Ok(domain.clone())
    }
}

/// The version that is known, and how long to wait for another one.
fn asked(query: &str) -> (&str, Duration) {
    let (mut since, mut wait) = ("", 0);
    for part in query.split('&') {
        match part.split_once('=') {
            Some(("since", version)) => since = version,
            Some(("wait", seconds)) => wait = seconds.parse().unwrap_or(0),
            _ => {}
        }
    }
    (since, Duration::from_secs(wait).min(WAIT_MAX))
}

/// Others look at our bundle at least as often; far sooner than an old root is retired.
const REFRESH_HINT_MAX: Duration = Duration::from_secs(300);
const WAIT_MAX: Duration = Duration::from_secs(60);
