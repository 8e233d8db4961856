//! `kind: Service`: something callers reach by name.

mod read;

use std::collections::BTreeMap;

use pillion_model::instance::Protocol;
use pillion_model::name::{DEFAULT_NAMESPACE, ServiceName};
use schemars::JsonSchema;
use serde::Serialize;

pub(crate) use self::read::{HOUR, MS, NO_TIME, path_pattern};
use crate::DurationText;

/// Something callers reach by name: its ports, its subsets, and how it is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Service {
    /// Its namespace. Default `default`.
    #[schemars(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Further DNS names, outside the zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub hosts: Vec<String>,
    /// What callers may dial.
    pub ports: Vec<Port>,
    /// Parts of the instances, by their labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub subsets: BTreeMap<String, BTreeMap<String, String>>,
    /// Mutual TLS of every port. Default: the mesh's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// How one of the instances is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// Timeouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeouts>,
    /// Retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Limits each caller keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// When a caller leaves a failing instance out for a while. Default: on, with the defaults below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Checks the sidecar makes of the application beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Addresses outside the mesh that serve this, instead of instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub endpoints: Vec<ExternalEndpoint>,
    /// TLS to `endpoints` under this server name, verified against the system's root certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Trust domains of other meshes (Federations) whose callers may reach this service, as far as an
    /// AuthorizationPolicy names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub export: Vec<String>,
    /// The service of another mesh that serves this, instead of instances of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
}

/// A service of another mesh, which exports it to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Import {
    /// The other mesh's trust domain, which a Federation names.
    pub trust_domain: String,
    /// The service as it is called there: `orders.shop`. Its ports are found by their names.
    pub service: String,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Port {
    /// Its name, a label.
    pub name: String,
    /// What callers dial.
    pub port: u16,
    /// Where the application listens. Default: `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is spoken. Default `http`.
    #[serde(serialize_with = "protocol_word")]
    #[schemars(with = "ProtocolWord")]
    pub protocol: Protocol,
    /// Mutual TLS of this port. Default: the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// Paths that health probes and scrapers outside the mesh may GET in plaintext: `/healthz`, or
    /// `/probes/*` for everything below.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub probes: Vec<String>,
}

/// What is spoken on a port.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
enum ProtocolWord {
    Http,
    Http2,
    Grpc,
    Tcp,
}

fn protocol_word<S: serde::Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol.as_str())
}

/// Mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mtls {
    /// Callers must present a certificate of the mesh; instances without a sidecar are not called.
    #[default]
    Strict,
    /// Mutual TLS between sidecars; plaintext with everyone else.
    Permissive,
    /// Plaintext.
    Disabled,
}

/// How one of the instances is chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct LoadBalancing {
    /// The policy. Default `ewma`.
    pub policy: BalancingPolicy,
    /// What `ringHash` and `maglev` hash; the first that the request has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub hash: Vec<HashKey>,
}

/// Policies of load balancing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BalancingPolicy {
    /// The faster and less busy of two at random.
    #[default]
    Ewma,
    /// The less busy of two at random.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// Consistent hashing by a ring.
    RingHash,
    /// Consistent hashing by Maglev's table.
    Maglev,
}

/// What consistent hashing hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HashKey {
    /// A request header.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A query parameter.
    Query(String),
    /// The caller's address.
    SourceIp(bool),
}

/// Timeouts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Timeouts {
    /// Time for the whole answer, retries included; `0s`: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<DurationText>,
    /// Time without a byte in either direction; `0s`: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<DurationText>,
    /// Time for one try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try: Option<DurationText>,
}

/// Retries, made by the caller's side, at another instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Retry {
    /// Tries after the first; 0 switches retries off. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// What is retried: `connect-failure`, `refused-stream`, `reset`, `gateway-error`, `5xx`, `unavailable`
    /// and other words of Envoy's, or a status code such as `503`. Default: `connect-failure`,
    /// `refused-stream`, `unavailable`, `503`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub on: Vec<String>,
    /// Retry answers to methods that are not idempotent (POST, and so all of gRPC) even if the
    /// application may have seen the request. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub non_idempotent: Option<bool>,
    /// Retries at once, as a share of requests in flight. Default 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_percent: Option<f64>,
    /// Wait before a retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

/// Wait before a retry: random, with a bound that doubles.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Backoff {
    /// Bound of the first wait. Default `25ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<DurationText>,
    /// Longest wait. Default ten times `base`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<DurationText>,
}

/// Limits each caller keeps towards a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Connections. Default 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection. Default 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Requests in flight. Default 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Retries in flight that are always allowed; above, the retry budget decides. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// When a caller leaves a failing instance out for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct OutlierDetection {
    /// Failures in a row; 0 switches it off. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive5xx: Option<u32>,
    /// How often left-out instances are looked at. Default `10s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// First time left out; grows with each further one. Default `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<DurationText>,
    /// Share of instances that may be left out. Default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
}

/// Checks the sidecar makes of the application beside it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct HealthCheck {
    /// GET of this path must answer 2xx.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// A connection must open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<bool>,
    /// The port's name. Default: the first port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Time between checks. Default `5s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// Time for an answer. Default `1s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// Successes in a row that make it healthy. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<u32>,
    /// Failures in a row that make it unhealthy. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<u32>,
}

/// An address outside the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct ExternalEndpoint {
    /// IP address or DNS name.
    pub address: String,
    /// Its port. Default: the service port's `targetPort` or `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Relative share of traffic, 1 to 65535. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// For subsets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub labels: BTreeMap<String, String>,
}

impl Service {
    /// The port of this name.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }
}

impl Port {
    /// Where the application listens.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// Every name a service has in the zone, the canonical one first.
pub fn dns_names(service: &ServiceName, zone: &str) -> Vec<String> {
    let (name, namespace) = (service.service(), service.namespace());
    let mut names = vec![service.dns_name(zone), format!("{name}.{namespace}.svc.{zone}")];
    if namespace == DEFAULT_NAMESPACE {
        names.push(format!("{name}.{zone}"));
    }
    names
}
