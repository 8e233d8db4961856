//! What operators and their tools ask: discovery for Prometheus, metrics, health, this API's document.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pillion_model::health::Health;
use schemars::JsonSchema;
use serde::Serialize;

use super::Api;

/// Targets with the same labels, as Prometheus' http_sd wants them.
#[derive(Serialize, JsonSchema)]
pub(super) struct TargetGroup {
    /// `address:port`.
    targets: Vec<String>,
    /// `__meta_pillion_…`, for relabelling.
    labels: BTreeMap<String, String>,
}

/// All instances that serve metrics.
#[derive(Serialize, JsonSchema)]
pub(super) struct TargetGroups(Vec<TargetGroup>);

pub(super) async fn prometheus_targets(State(api): State<Api>) -> Json<TargetGroups> {
    let world = api.catalog.world();
    let mut groups = Vec::new();
    for instance in world.catalog.services.values().flat_map(|service| service.instances.values()) {
        let Some(port) = instance.metrics_port else { continue };
        let mut labels = BTreeMap::from([
            ("__meta_pillion_namespace".to_owned(), instance.service.namespace().to_owned()),
            ("__meta_pillion_service".to_owned(), instance.service.service().to_owned()),
            ("__meta_pillion_instance".to_owned(), instance.id.to_string()),
            ("__meta_pillion_zone".to_owned(), instance.zone.clone()),
            ("__meta_pillion_health".to_owned(), Health::combine(instance.health).as_str().to_owned()),
        ]);
        for (name, value) in &instance.labels {
            labels.insert(format!("__meta_pillion_label_{}", label_name(name)), value.clone());
        }
        groups
            .push(TargetGroup { targets: vec![SocketAddr::new(instance.address, port).to_string()], labels });
    }
    Json(TargetGroups(groups))
}

/// A label's name as Prometheus allows it.
fn label_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

pub(super) async fn openapi() -> Json<serde_json::Value> {
    Json(super::openapi())
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let text = api.metrics.text(&api.catalog, &api.hub);
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(api): State<Api>) -> (StatusCode, String) {
    if api.readiness.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", api.readiness.pending().join(", ")))
}
