//! The HTTP API on port 7070: instances, services, watching, resources, and what operators ask.
//!
//! JSON in and out, errors as RFC 9457 problem documents that name the field, one table of
//! operations from which both the router and the OpenAPI document are made.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Router};
use pillion_model::instance::Instance;
use pillion_net::readiness::Readiness;
use pillion_xds::ads::{AdsService, LoadReports};
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::ca::{Authority, Role};
use crate::catalog::Catalog;
use crate::control::Control;
use crate::dns::RegistryZone;
use crate::federation::Federations;
use crate::metrics::Metrics;
use crate::watch::Hub;

mod auth;
mod authority;
mod batch;
mod bodies;
mod cloud_map;
mod consul;
mod federation;
mod instances;
mod json;
mod openapi;
mod operate;
mod problem;
mod proxies;
mod request;
mod resources;
mod services;
mod tokens;
mod types;
mod watch;

pub use auth::{Auth, TOKEN_FILE, TokenFileError};
pub use problem::{Problem, ProblemField};
pub use types::{
    BeatView, InputsView, InstanceDocument, InstanceList, InstanceView, PortDocument, PortView, ServiceList,
    ServiceView,
};

use auth::Guard;
use bodies::Bodies;
use openapi::{Access, Body, Operation};

/// Largest request body. A mesh of thousands of resources fits.
const BODY_BYTES_MAX: usize = 8 << 20;
/// All bodies together that are being read or handled.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// The same, of requests that are not from holders of the token, or not yet known to be.
const STRANGERS_BYTES_MAX: usize = 16 << 20;

/// What the handlers use. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

/// The parts of the registry that the API speaks for.
pub struct Parts {
    /// Services, instances and resources.
    pub catalog: Arc<Catalog>,
    /// Watching.
    pub hub: Arc<Hub>,
    /// What is resolved.
    pub control: Arc<Control>,
    /// The connected proxies.
    pub ads: AdsService<Control>,
    /// What they say of their requests.
    pub loads: LoadReports,
    /// Certificates and join tokens.
    pub authority: Arc<Authority>,
    /// Who changed what.
    pub audit: Arc<Audit>,
    /// DNS, for what it has answered.
    pub zone: Arc<RegistryZone>,
    /// Other meshes.
    pub federations: Arc<Federations>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Whether every part of the process is up.
    pub readiness: Readiness,
    /// Ends requests that wait.
    pub stop: CancellationToken,
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Parts {
    /// An instance as it is, and whether it is held back for flapping.
    fn instance_view(&self, instance: &Instance) -> InstanceView {
        let mut view = InstanceView::from(instance);
        view.inputs.held_back = self.catalog.damping().said(&instance.service, &instance.id).is_some();
        view
    }
}

/// The API over these parts.
pub fn router(parts: Parts, auth: Auth) -> Router {
    let api = Api(Arc::new(parts));
    let (mut guarded, mut open, mut roles) = (Router::new(), Router::new(), HashMap::new());
    let bodies = Bodies::new(BODY_BYTES_MAX, BODIES_BYTES_MAX);
    // A budget of its own: who has no token cannot use up that of those who have.
    let strangers = Bodies::new(cloud_map::BODY_BYTES_MAX, STRANGERS_BYTES_MAX);
    for (operation, handler) in table() {
        let mut router = &mut open;
        if let Access::Token(role) = operation.access {
            let method = operation.method.to_uppercase().parse().expect("the table has methods of HTTP");
            roles.insert((method, operation.path), role);
            router = &mut guarded;
        }
        *router = std::mem::take(router).route(operation.path, handler);
    }
    let guard = Guard { auth: auth.clone(), api: api.clone(), roles: Arc::new(roles) };
    guarded
        .layer(middleware::from_fn_with_state(bodies, bodies::gather))
        .layer(middleware::from_fn_with_state(guard, auth::check))
        .merge(open.layer(middleware::from_fn_with_state(strangers, bodies::gather)))
        .layer(Extension(auth))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::disable()) // bodies are read before
        .layer(middleware::from_fn_with_state(api.clone(), count))
        .with_state(api)
}

/// The OpenAPI document.
pub fn openapi() -> serde_json::Value {
    let operations: Vec<Operation> = table().into_iter().map(|(operation, _)| operation).collect();
    openapi::document(&operations)
}

fn table() -> Vec<(Operation, axum::routing::MethodRouter<Api>)> {
    const INSTANCE: &str = "/v1/namespaces/{namespace}/services/{service}/instances/{id}";
    const HEARTBEAT: &str = "/v1/namespaces/{namespace}/services/{service}/instances/{id}/heartbeat";
    const MAINTENANCE: &str = "/v1/namespaces/{namespace}/services/{service}/instances/{id}/maintenance";
    const INSTANCES: &str = "/v1/namespaces/{namespace}/services/{service}/instances";
    const SERVICE: &str = "/v1/namespaces/{namespace}/services/{service}";
    const SERVICES: &str = "/v1/namespaces/{namespace}/services";
    const RESOURCE: &str = "/v1/resources/{kind}/{namespace}/{name}";
    const LIST: [&str; 5] = ["healthy", "label", "zone", "since", "wait"];
    vec![
        (
            Operation::new("put", INSTANCE, "Register an instance, or replace it")
                .takes(Body::json("InstanceDocument"))
                .gives("RegisteredView"),
            put(instances::register),
        ),
        (Operation::new("get", INSTANCE, "One instance").gives("InstanceView"), get(instances::read)),
        (
            Operation::new("delete", INSTANCE, "Take an instance out for good")
                .query(&["generation"])
                .status(204),
            delete(instances::deregister),
        ),
        (
            Operation::new("put", HEARTBEAT, "The instance is still there; may say how it is")
                .takes(Body::optional("HeartbeatDocument"))
                .gives("BeatView"),
            put(instances::heartbeat),
        ),
        (
            Operation::new("put", MAINTENANCE, "Take an instance out of service without stopping it")
                .gives("InstanceView"),
            put(instances::begin_maintenance),
        ),
        (
            Operation::new("delete", MAINTENANCE, "Put an instance back into service").gives("InstanceView"),
            delete(instances::end_maintenance),
        ),
        (
            Operation::new("post", "/v1/instances", "Register many instances, each with its own outcome")
                .takes(Body::json("InstancesDocument"))
                .gives("RegisteredMany"),
            post(batch::register_many),
        ),
        (
            Operation::new("post", "/v1/heartbeats", "Heartbeats of many instances")
                .takes(Body::json("HeartbeatsDocument"))
                .gives("HeartbeatsView"),
            post(instances::heartbeats),
        ),
        (
            Operation::new("get", INSTANCES, "Instances of a service; with since, waits for a change")
                .query(&LIST)
                .gives("InstanceList"),
            get(services::instances),
        ),
        (
            Operation::new("get", SERVICE, "One service").query(&LIST[3..]).gives("ServiceView"),
            get(services::one),
        ),
        (
            Operation::new("delete", SERVICE, "Forget a registered service that has no instances")
                .status(204),
            delete(services::forget),
        ),
        (
            Operation::new("get", SERVICES, "Services of a namespace").query(&LIST[3..]).gives("ServiceList"),
            get(services::in_namespace),
        ),
        (
            Operation::new("get", "/v1/services", "Services of all namespaces")
                .query(&LIST[3..])
                .gives("ServiceList"),
            get(services::all),
        ),
        (
            Operation::new("get", "/v1/watch", "Changes of services, as server-sent events")
                .query(&["service", "namespace", "since"])
                .stream(),
            get(watch::stream),
        ),
        (
            Operation::new("get", "/v1/resources", "Resources of all kinds")
                .query(&["namespace"])
                .gives("ResourceList"),
            get(resources::list_all),
        ),
        (
            Operation::new("get", "/v1/resources/{kind}", "Resources of one kind")
                .query(&["namespace"])
                .gives("ResourceList"),
            get(resources::list),
        ),
        (Operation::new("get", RESOURCE, "One resource").gives("Resource"), get(resources::read)),
        (
            Operation::new("put", RESOURCE, "Create or replace a resource")
                .query(&["dryRun"])
                .takes(Body::resource())
                .gives("Resource"),
            put(resources::replace),
        ),
        (
            Operation::new("delete", RESOURCE, "Delete a resource").query(&["dryRun"]).status(204),
            delete(resources::remove),
        ),
        (
            Operation::new("post", "/v1/apply", "Apply resources, all or nothing")
                .query(&["dryRun"])
                .takes(Body::resource())
                .gives("AppliedView"),
            post(resources::apply),
        ),
        (
            Operation::new("get", "/v1/sd/prometheus", "Targets for Prometheus (http_sd)")
                .gives("TargetGroups"),
            get(operate::prometheus_targets),
        ),
        (
            Operation::new(
                "get",
                "/v1/health/service/{name}",
                "Instances of a service, as Consul tells them",
            )
            .query(&consul::HEALTH)
            .gives("HealthEntries"),
            get(consul::health),
        ),
        (
            Operation::new("get", "/v1/catalog/services", "Services and their tags, as Consul tells them")
                .query(&consul::BLOCKING)
                .gives("ServiceTags"),
            get(consul::services),
        ),
        (
            Operation::new("get", "/v1/agent/self", "What a client of Consul asks first").gives("Agent"),
            get(consul::agent),
        ),
        (
            Operation::new("post", "/", "A call of AWS Cloud Map, named by X-Amz-Target, in AWS JSON 1.1")
                .signed(),
            post(cloud_map::call),
        ),
        (
            Operation::new("post", "/v1/explain", "What would happen to a request, and why")
                .role(Role::Read)
                .takes(Body::json("Question"))
                .gives("Explanation"),
            post(operate::explain),
        ),
        (Operation::new("get", "/v1/proxies", "Connected proxies").gives("ProxyList"), get(proxies::list)),
        (
            Operation::new(
                "get",
                "/v1/proxies/{namespace}/{service}/{id}",
                "How far a connected proxy got with every resource",
            )
            .gives("ProxyDetails"),
            get(proxies::one),
        ),
        (
            Operation::new("get", "/v1/brake", "The brake on mass expiry, and who is held back for flapping")
                .gives("BrakeView"),
            get(operate::brake),
        ),
        (
            Operation::new("get", "/v1/store", "The store: position, replicas, and what is wrong")
                .gives("StoreView"),
            get(operate::store),
        ),
        (
            Operation::new(
                "get",
                "/v1/snapshot",
                "Everything, secrets included, as `pillion snapshot` keeps it",
            )
            .role(Role::Admin),
            get(operate::snapshot),
        ),
        (
            Operation::new(
                "post",
                "/v1/tokens",
                "Create a join token, or with role an operator's; its secret is shown only now",
            )
            .role(Role::Admin)
            .takes(Body::optional("TokenDocument"))
            .gives("NewTokenView")
            .status(201),
            post(tokens::create),
        ),
        (
            Operation::new("get", "/v1/tokens", "Join tokens and operators' tokens, without secrets")
                .role(Role::Admin)
                .gives("TokenList"),
            get(tokens::list),
        ),
        (
            Operation::new(
                "delete",
                "/v1/tokens/{id}",
                "Delete a join token, or the operator's token of this name",
            )
            .role(Role::Admin)
            .status(204),
            delete(tokens::remove),
        ),
        (
            Operation::new(
                "get",
                "/v1/ca",
                "The root certificates: PEM, or with Accept JSON what is known of them",
            )
            .gives("AuthorityView")
            .open(),
            get(tokens::authority),
        ),
        (
            Operation::new(
                "get",
                "/v1/ca/status",
                "The roots, where their rotation stands, and who is awaited",
            )
            .gives("RootsView"),
            get(authority::status),
        ),
        (
            Operation::new("post", "/v1/ca/rotate", "Begin a rotation of the root, or force its next step")
                .role(Role::Admin)
                .takes(Body::optional("RotateDocument"))
                .gives("RootsView"),
            post(authority::rotate),
        ),
        (
            Operation::new("post", "/v1/ca/revocations", "Revoke an identity, an instance or a certificate")
                .role(Role::Admin)
                .takes(Body::json("RevocationDocument"))
                .gives("RevocationView"),
            post(authority::revoke),
        ),
        (
            Operation::new("delete", "/v1/ca/revocations", "Take a revocation back")
                .role(Role::Admin)
                .query(&["what"])
                .status(204),
            delete(authority::unrevoke),
        ),
        (
            Operation::new(
                "get",
                "/v1/ca/bundle",
                "The trust bundle, as other meshes are to trust it (JWK set)",
            )
            .open(),
            get(federation::bundle),
        ),
        (
            Operation::new("get", "/v1/federations", "Other meshes, and what of them is in force")
                .gives("FederationList"),
            get(federation::list),
        ),
        (
            Operation::new("get", "/v1/audit", "The last changes and refusals, the latest last")
                .role(Role::Admin)
                .query(&["last"])
                .gives("AuditList"),
            get(operate::audit),
        ),
        (Operation::new("get", "/v1/openapi.json", "This document").open(), get(operate::openapi)),
        (
            Operation::new("get", "/metrics", "Metrics in Prometheus' text format").open(),
            get(operate::metrics),
        ),
        (Operation::new("get", "/healthz", "Whether the process lives").open(), get(operate::healthz)),
        (Operation::new("get", "/readyz", "Whether every part is up").open(), get(operate::readyz)),
    ]
}

async fn unknown_path(request: Request) -> Problem {
    Problem::not_found(format_args!("`{}` here; see /v1/openapi.json", request.uri().path()))
}

async fn wrong_method(request: Request) -> Problem {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let possible = table().into_iter().filter(|(operation, _)| operation.path == path);
    let possible: Vec<String> = possible.map(|(operation, _)| operation.method.to_uppercase()).collect();
    let (method, path) = (request.method(), request.uri().path());
    let detail = format!("{method} is not possible on {path}, but {} is", possible.join(" and "));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Counts requests, and turns axum's own refusals into problem documents.
async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let path = path.as_ref().map_or("other", MatchedPath::as_str);
    api.metrics.api_request(&method, path, response.status());
    let status = response.status();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    match status {
        StatusCode::BAD_REQUEST if plain => {
            Problem::new(status, "the request cannot be read").into_response()
        }
        _ => response,
    }
}
