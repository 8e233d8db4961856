//! Registering, beating, leaving.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pillion_model::health::{Administrative, Reported};
use pillion_model::name::{InstanceId, ServiceName};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::batch::{pointed_at, take_list};
use super::request::{Query, instance_id, json, service_name};
use super::{Api, BeatView, InstanceView, Problem};
use crate::catalog::{Changes, Registration, ReportError, World, parse_reported};

/// Heartbeats in one request at most.
const HEARTBEATS_MAX: usize = 10_000;

/// A registered instance, and how often it is to be heard.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RegisteredView {
    #[serde(flatten)]
    instance: InstanceView,
    /// How often to send a heartbeat.
    beat_interval: String,
}

/// A heartbeat; all of it may be left out.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct HeartbeatDocument {
    /// Refused if it is not the registered one.
    generation: Option<u64>,
    /// `ready`, `starting`, `notReady` or `draining`.
    health: Option<String>,
}

/// Heartbeats of many instances, 10000 at most.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct HeartbeatsDocument {
    heartbeats: Vec<HeartbeatOf>,
}

/// Whose heartbeat, and how it is.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct HeartbeatOf {
    /// Default `default`.
    namespace: Option<String>,
    service: String,
    id: String,
    generation: Option<u64>,
    health: Option<String>,
}

/// One result per heartbeat, in their order.
#[derive(Serialize, JsonSchema)]
pub(super) struct HeartbeatsView {
    results: Vec<HeartbeatResult>,
}

/// What became of one heartbeat.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeartbeatResult {
    /// `ok`, `unknown` (register again), `older` (a newer instance has this id), `failed`, or `invalid`
    /// as `problem` says.
    status: &'static str,
    /// How often to send a heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    beat_interval: Option<String>,
    /// What is wrong; its fields are JSON pointers into the request, such as `/heartbeats/17/id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

type Names = Path<(String, String, String)>;

fn names(Path((namespace, service, id)): Names) -> Result<(ServiceName, InstanceId), Problem> {
    Ok((service_name(&namespace, &service)?, instance_id(&id)?))
}

pub(super) async fn register(
    State(api): State<Api>,
    path: Names,
    query: Query,
    body: Bytes,
) -> Result<Response, Problem> {
    query.only(&[])?;
    let (service, id) = names(path)?;
    let registration = Registration::parse(service.clone(), id.clone(), &json(&body)?)?;
    let world = api.catalog.world();
    if let Some(detail) = held_by_sidecar(&world, &registration) {
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let existed = world.catalog.instance(&service, &id).is_some();
    let registered = api.catalog.register(&registration).await?;
    let BeatView { beat_interval, .. } = BeatView::from(&*registered.instance);
    let view = RegisteredView { instance: api.instance_view(&registered.instance), beat_interval };
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(view)).into_response())
}

/// Why a registration may not take the place of a sidecar's: that one beats on, and would keep alive
/// what it never said.
pub(super) fn held_by_sidecar(world: &World, registration: &Registration) -> Option<String> {
    let Registration { service, id, .. } = registration;
    let known = world.catalog.instance(service, id)?;
    let taken = known.inbound_port.is_some()
        && registration.inbound_port.is_none()
        && registration.generation.is_none();
    taken.then(|| {
        format!(
            "instance {id} of {service} is registered by its sidecar; take another id, or name a `generation` \
             to take its place"
        )
    })
}

pub(super) async fn read(State(api): State<Api>, path: Names) -> Result<Json<InstanceView>, Problem> {
    let (service, id) = names(path)?;
    let world = api.catalog.world();
    match world.catalog.instance(&service, &id) {
        Some(instance) => Ok(Json(api.instance_view(instance))),
        None => Err(Problem::not_found(format_args!("instance {id} of service {service}"))),
    }
}

pub(super) async fn deregister(
    State(api): State<Api>,
    path: Names,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&["generation"])?;
    let (service, id) = names(path)?;
    let generation =
        match query.first("generation") {
            None => None,
            Some(text) => Some(text.parse::<u64>().map_err(|_| {
                Problem::parameter("generation", format!("got `{text}`, want a whole number"))
            })?),
        };
    api.catalog.deregister(&service, &id, generation).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn heartbeat(
    State(api): State<Api>,
    path: Names,
    body: Bytes,
) -> Result<Json<BeatView>, Problem> {
    let (service, id) = names(path)?;
    let beat = match body.is_empty() {
        true => Beat::default(),
        false => Beat::parse(&json(&body)?, &["generation", "health"])?,
    };
    Ok(Json(beat.send(&api, &service, &id).await?))
}

/// `POST /v1/heartbeats`. What is wrong with one heartbeat does not keep the others out.
pub(super) async fn heartbeats(State(api): State<Api>, body: Bytes) -> Result<Json<HeartbeatsView>, Problem> {
    const WANT: &str = "want a list of {namespace, service, id}";
    let list = take_list(json(&body)?, "heartbeats", HEARTBEATS_MAX, WANT)?;
    drop(body);
    let mut results = Vec::with_capacity(list.len());
    for (at, item) in list.iter().enumerate() {
        let result = |status| HeartbeatResult { status, beat_interval: None, problem: None };
        results.push(match read_heartbeat(item) {
            Err(problem) => HeartbeatResult {
                problem: Some(pointed_at(problem, &format!("/heartbeats/{at}"))),
                ..result("invalid")
            },
            Ok((service, id, beat)) => match beat.report(&api, &service, &id).await {
                Ok(view) => HeartbeatResult { beat_interval: Some(view.beat_interval), ..result("ok") },
                Err(ReportError::Unknown(..)) => result("unknown"),
                Err(ReportError::Older { .. }) => result("older"),
                Err(ReportError::Store(_)) => result("failed"),
            },
        });
    }
    Ok(Json(HeartbeatsView { results }))
}

fn read_heartbeat(item: &Value) -> Result<(ServiceName, InstanceId, Beat), Problem> {
    let beat = Beat::parse(item, &["namespace", "service", "id", "generation", "health"])?;
    let text = |field: &str| match item.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(other) => Err(Problem::field(field, format!("got {other}, want a text"))),
    };
    let needed = |field: &str| text(field)?.ok_or_else(|| Problem::field(field, "is missing"));
    let namespace = text("namespace")?.unwrap_or(pillion_model::name::DEFAULT_NAMESPACE);
    Ok((service_name(namespace, needed("service")?)?, instance_id(needed("id")?)?, beat))
}

pub(super) async fn begin_maintenance(state: State<Api>, path: Names) -> Result<Json<InstanceView>, Problem> {
    administer(state, path, Administrative::Maintenance).await
}

pub(super) async fn end_maintenance(state: State<Api>, path: Names) -> Result<Json<InstanceView>, Problem> {
    administer(state, path, Administrative::Enabled).await
}

async fn administer(
    State(api): State<Api>,
    path: Names,
    state: Administrative,
) -> Result<Json<InstanceView>, Problem> {
    let (service, id) = names(path)?;
    let changes = Changes { administrative: Some(state), ..Changes::default() };
    let instance = api.catalog.report(&service, &id, None, changes).await?;
    Ok(Json(api.instance_view(&instance)))
}

/// What a heartbeat may say.
#[derive(Default)]
struct Beat {
    generation: Option<u64>,
    reported: Option<Reported>,
}

impl Beat {
    fn parse(body: &Value, known: &[&str]) -> Result<Self, Problem> {
        let Some(map) = body.as_object() else {
            return Err(Problem::field("", "want an object"));
        };
        if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let detail = format!("is not a field; the fields are {}", known.join(", "));
            return Err(Problem::field(unknown, detail));
        }
        let given = |field: &str| map.get(field).filter(|value| !value.is_null());
        let generation = match given("generation") {
            None => None,
            Some(value) => {
                let wrong = || Problem::field("generation", format!("got {value}, want a whole number"));
                Some(value.as_u64().ok_or_else(wrong)?)
            }
        };
        let reported = match given("health") {
            None => None,
            Some(value) => Some(value.as_str().and_then(parse_reported).ok_or_else(|| {
                Problem::field("health", format!("got {value}, want ready, starting, notReady or draining"))
            })?),
        };
        Ok(Self { generation, reported })
    }

    async fn send(&self, api: &Api, service: &ServiceName, id: &InstanceId) -> Result<BeatView, Problem> {
        Ok(self.report(api, service, id).await?)
    }

    async fn report(
        &self,
        api: &Api,
        service: &ServiceName,
        id: &InstanceId,
    ) -> Result<BeatView, ReportError> {
        let changes = Changes { reported: self.reported, ..Changes::default() };
        let instance = api.catalog.report(service, id, self.generation, changes).await?;
        api.metrics.heartbeats.inc();
        Ok(BeatView::from(&*instance))
    }
}
