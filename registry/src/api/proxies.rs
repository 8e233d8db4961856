//! Who follows this registry by ADS, and how far each of them got.

use axum::Json;
use axum::extract::{Path, State};
use pillion_xds::ads::server::{ResourceState, ResourceStatus, TypeStatus};
use pillion_xds::ads::{ProxyStatus, Variant};
use pillion_xds::type_url;
use schemars::JsonSchema;
use serde::Serialize;

use super::operate::unix_seconds;
use super::{Api, Problem};

/// The connected proxies.
#[derive(Serialize, JsonSchema)]
pub(super) struct ProxyList {
    /// Oldest stream first.
    proxies: Vec<ProxyView>,
}

/// One proxy's stream, or that of a gRPC client without one.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyView {
    /// `<namespace>/<service>/<instance-id>`.
    node: String,
    /// The identity its certificate proves.
    identity: Option<String>,
    /// `pillion`, `envoy`, …
    user_agent: String,
    version: String,
    /// `delta` or `sotw`.
    variant: &'static str,
    /// When its stream began, Unix seconds.
    since: u64,
    /// What was sent and answered, by type of resource.
    types: Vec<ProxyType>,
}

/// Resources of one type on a proxy's stream.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyType {
    /// `listener`, `cluster`, `endpoints`, `route`, `service`, …
    name: &'static str,
    /// Everything is subscribed to.
    wildcard: bool,
    /// Names subscribed to.
    subscriptions: usize,
    /// Waits for an answer.
    in_flight: bool,
    /// Responses sent, accepted, and refused.
    pushes: u64,
    acks: u64,
    nacks: u64,
    /// Resources that it refuses now.
    refused: usize,
    /// Why the last response was refused, until one is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

/// The streams of one proxy, with every resource.
#[derive(Serialize, JsonSchema)]
pub(super) struct ProxyDetails {
    /// Oldest first; a gRPC application may have several.
    streams: Vec<ProxyDetail>,
}

/// One stream of a proxy, with every resource.
#[derive(Serialize, JsonSchema)]
pub(super) struct ProxyDetail {
    #[serde(flatten)]
    proxy: ProxyView,
    /// By type and name.
    resources: Vec<ProxyResource>,
}

/// How far a resource got at a proxy.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProxyResource {
    /// `listener`, `cluster`, …
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    /// `acknowledged`, `pending`, `refused` or `absent`.
    state: &'static str,
    /// What was sent last, where the stream keeps it (`sotw`).
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Why it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn list(State(api): State<Api>) -> Json<ProxyList> {
    Json(ProxyList { proxies: api.ads.proxies().iter().map(view).collect() })
}

pub(super) async fn one(
    State(api): State<Api>,
    Path((namespace, service, id)): Path<(String, String, String)>,
) -> Result<Json<ProxyDetails>, Problem> {
    let node = format!("{namespace}/{service}/{id}");
    let streams: Vec<_> =
        api.ads.proxies().iter().filter(|proxy| proxy.node.id == node).map(detail).collect();
    if streams.is_empty() {
        return Err(Problem::not_found(format_args!("connected proxy {node}")));
    }
    Ok(Json(ProxyDetails { streams }))
}

fn view(proxy: &ProxyStatus) -> ProxyView {
    ProxyView {
        node: proxy.node.id.clone(),
        identity: proxy.peer.as_ref().map(ToString::to_string),
        user_agent: proxy.node.user_agent.clone(),
        version: proxy.node.user_agent_version.clone(),
        variant: match proxy.variant {
            Variant::Delta => "delta",
            Variant::Sotw => "sotw",
        },
        since: unix_seconds(proxy.since),
        types: proxy.types.iter().map(of_type).collect(),
    }
}

fn of_type(status: &TypeStatus) -> ProxyType {
    ProxyType {
        name: type_url::label(&status.type_url),
        wildcard: status.wildcard,
        subscriptions: status.names,
        in_flight: status.in_flight,
        pushes: status.pushes,
        acks: status.acks,
        nacks: status.nacks,
        refused: status.refused,
        last_error: status.last_error.clone(),
    }
}

fn detail(proxy: &ProxyStatus) -> ProxyDetail {
    let mut resources: Vec<ProxyResource> = proxy.resources().into_iter().map(resource).collect();
    resources.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    ProxyDetail { proxy: view(proxy), resources }
}

fn resource(status: ResourceStatus) -> ProxyResource {
    let (state, error) = match status.state {
        ResourceState::Acknowledged => ("acknowledged", None),
        ResourceState::Pending => ("pending", None),
        ResourceState::Refused(why) => ("refused", Some(why.to_string())),
        ResourceState::Absent => ("absent", None),
    };
    ProxyResource {
        kind: type_url::label(&status.type_url),
        name: status.name,
        state,
        version: status.version,
        error,
    }
}
