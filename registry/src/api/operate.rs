//! What operators and their tools ask: discovery for Prometheus, metrics, health, this API's document.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pillion_model::health::Health;
use schemars::JsonSchema;
use serde::Serialize;

use super::request::{Query, json};
use super::{Api, Problem, ProblemField};
use crate::audit::{KEPT, Record};
use crate::explain::{ExplainError, Explanation, Question};
use crate::lease::BrakeState;
use crate::store::snapshot::Snapshot;

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
        for (name, value) in instance.labels.iter() {
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

pub(super) fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) async fn explain(State(api): State<Api>, body: Bytes) -> Result<Json<Explanation>, Problem> {
    let question: Question = serde_json::from_value(json(&body)?)
        .map_err(|error| Problem::field("", format!("the question cannot be read: {error}")))?;
    let model = Arc::clone(&api.control.model().borrow());
    let explanation = crate::explain::explain(&model, &question).map_err(|error| {
        let (status, field) = match &error {
            ExplainError::Caller { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "caller"),
            ExplainError::Service(_) => (StatusCode::NOT_FOUND, "service"),
            ExplainError::Port { .. } => (StatusCode::NOT_FOUND, "port"),
        };
        Problem::fields(status, vec![ProblemField::new(field, error.to_string())])
    });
    let mut explanation = explanation?;
    explanation.note_left_out(&api.catalog.world().catalog);
    Ok(Json(explanation))
}

/// Made once: everybody may ask for it.
pub(super) async fn openapi() -> Response {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| super::openapi().to_string().into());
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], DOCUMENT.clone()).into_response()
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let text = api.metrics.text(&api.catalog, &api.hub, &api.ads, &api.loads, &api.zone);
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The brake on mass expiry: how many may leave for silence alone, and who is held.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct BrakeView {
    /// Silent instances are held right now.
    engaged: bool,
    /// All services together.
    overall: BrakeCounts,
    /// Services from which instances left for silence in the last minute, or are held.
    services: Vec<BrakeOfService>,
    /// Instances that come and go, and are held back until they have been steady.
    damped: Vec<DampedView>,
}

/// Numbers of instances.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct BrakeCounts {
    /// Registered now.
    instances: usize,
    /// Left for silence in the last minute.
    departed: usize,
    /// May leave for silence in one minute.
    budget: usize,
    /// Silent and held: shown as stale, for ten minutes at most.
    protected: usize,
}

/// The brake of one service.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct BrakeOfService {
    namespace: String,
    service: String,
    #[serde(flatten)]
    counts: BrakeCounts,
}

/// An instance held back for flapping.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DampedView {
    namespace: String,
    service: String,
    id: String,
    /// 1000 for each departure, halved every minute.
    penalty: u64,
    /// Seconds it has been steady; it counts again after 30.
    steady_seconds: u64,
}

impl From<BrakeState> for BrakeCounts {
    fn from(state: BrakeState) -> Self {
        let BrakeState { instances, departed, budget, protected } = state;
        Self { instances, departed, budget, protected }
    }
}

pub(super) async fn brake(State(api): State<Api>) -> Json<BrakeView> {
    let now = api.catalog.now();
    let (overall, services) = api.catalog.leases().brake(now);
    let services = services.into_iter().map(|(service, state)| BrakeOfService {
        namespace: service.namespace().to_owned(),
        service: service.service().to_owned(),
        counts: state.into(),
    });
    let damped = api.catalog.damping().held(now).into_iter().map(|damped| DampedView {
        namespace: damped.service.namespace().to_owned(),
        service: damped.service.service().to_owned(),
        id: damped.id.to_string(),
        penalty: damped.penalty,
        steady_seconds: damped.steady.as_secs(),
    });
    Json(BrakeView {
        engaged: overall.protected > 0,
        overall: overall.into(),
        services: services.collect(),
        damped: damped.collect(),
    })
}

/// What this registry knows of its store.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoreView {
    /// `<epoch>.<revision>` of what is served.
    position: String,
    /// This registry's name among those that share the store; empty if it is alone.
    replica: String,
    /// The registries that share the store, those present.
    replicas: Vec<String>,
    /// Why nothing can be written at the moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

pub(super) async fn store(State(api): State<Api>) -> Json<StoreView> {
    let (store, world) = (api.catalog.store(), api.catalog.world());
    Json(StoreView {
        position: world.position().to_string(),
        replica: store.replica().to_owned(),
        replicas: world.replicas.iter().map(ToString::to_string).collect(),
        trouble: store.trouble(),
    })
}

/// What was changed and refused.
#[derive(Serialize, JsonSchema)]
pub(super) struct AuditList {
    /// The latest last.
    records: Vec<Record>,
}

pub(super) async fn audit(State(api): State<Api>, query: Query) -> Result<Json<AuditList>, Problem> {
    query.only(&["last"])?;
    let last = query.first("last").map_or(Ok(AUDIT_DEFAULT), str::parse);
    let last = last.map_err(|_| Problem::parameter("last", format!("want a number up to {KEPT}")))?;
    Ok(Json(AuditList { records: api.audit.last(last) }))
}

/// How many records unless it is said.
const AUDIT_DEFAULT: usize = 100;

pub(super) async fn snapshot(State(api): State<Api>) -> Result<Response, Problem> {
    let state = api.catalog.store().load().await?;
    let mut response = Snapshot::of(&state).to_text().into_response();
    let kind = HeaderValue::from_static("application/jsonl");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
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
