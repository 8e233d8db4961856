//! `kind: Service`: something callers reach by name.

use std::collections::BTreeMap;
use std::time::Duration;

use pillion_model::instance::Protocol;
use pillion_model::name::{DEFAULT_NAMESPACE, RESERVED_LABELS, ServiceName};
use pillion_model::retry::RetryOn;
use schemars::JsonSchema;
use serde::Serialize;

use crate::DurationText;
use crate::mesh::dns_name;
use crate::reader::{Field, Object, header_name};
use crate::resource::Id;

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

/// No time at all: `0s`, which switches a limit off.
pub(crate) const NO_TIME: Duration = Duration::ZERO;
/// One millisecond.
pub(crate) const MS: Duration = Duration::from_millis(1);
/// One hour.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Most further names of one service.
const HOSTS_MAX: usize = 64;
/// Most ports of one service.
const PORTS_MAX: usize = 64;

impl Service {
    pub(crate) fn read(id: Id, mut object: Object<'_>) -> Option<Self> {
        let hosts = object.list("hosts", host);
        if hosts.len() > HOSTS_MAX {
            object.refuse(format!("has {} hosts, want at most {HOSTS_MAX}", hosts.len()));
        }
        let ports = object.required("ports", |field| field.list_of_some(Port::read));
        let subsets = object.optional("subsets", |field| field.map(subset_name, subset)).unwrap_or_default();
        let mtls = object.optional("mtls", Mtls::read);
        let load_balancing = object.optional("loadBalancing", LoadBalancing::read);
        let timeout = object.optional("timeout", Timeouts::read);
        let retry = object.optional("retry", Retry::read);
        let circuit_breaker = object.optional("circuitBreaker", CircuitBreaker::read);
        let outlier_detection = object.optional("outlierDetection", OutlierDetection::read);
        let health_check = object.optional("healthCheck", HealthCheck::read);
        object.later("rateLimits", "rate limits are");
        let endpoints = object.list("endpoints", ExternalEndpoint::read);
        let sni = object.optional("sni", dns_name);
        if sni.is_some() && !object.has("endpoints") {
            object.refuse("has `sni` but no `endpoints`; sni is for services outside the mesh");
        }
        if health_check.is_some() && object.has("endpoints") {
            object.refuse("has `healthCheck` and `endpoints`; health checks are made by sidecars only");
        }
        let ports = ports?;
        if ports.len() > PORTS_MAX {
            object.refuse(format!("has {} ports, want at most {PORTS_MAX}", ports.len()));
        }
        object.finish();
        Some(Self {
            namespace: id.namespace,
            name: id.name,
            hosts,
            ports,
            subsets,
            mtls,
            load_balancing,
            timeout,
            retry,
            circuit_breaker,
            outlier_detection,
            health_check,
            endpoints,
            sni,
        })
    }

    /// The port of this name.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }
}

/// A further name: a DNS name that is not an address.
fn host(field: Field<'_>) -> Option<String> {
    let name = dns_name(field.clone())?;
    if name.parse::<std::net::IpAddr>().is_ok() {
        field.refuse(format!("\"{name}\" is an address, want a DNS name"));
        return None;
    }
    Some(name)
}

fn subset_name(name: &str) -> Result<(), String> {
    pillion_model::name::check_label(name).map_err(|error| error.to_string())?;
    if RESERVED_LABELS.contains(&name) {
        return Err("is reserved for DNS names".to_owned());
    }
    Ok(())
}

fn subset(field: Field<'_>) -> Option<BTreeMap<String, String>> {
    if matches!(&field.node.value, crate::node::Value::Map(entries) if entries.is_empty()) {
        field.refuse("is empty; want labels that select instances, such as {version: \"1\"}");
        return None;
    }
    field.map(label_key, Field::text)
}

fn label_key(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > 253 {
        return Err("is not a label key; want 1 to 253 characters".to_owned());
    }
    Ok(())
}

impl Port {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let name = object.required("name", Field::label);
        let port = object.required("port", |field| field.integer(1..=u16::MAX));
        let target_port = object.optional("targetPort", |field| field.integer(1..=u16::MAX));
        let protocol = object.optional("protocol", |field| {
            let all = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];
            field.choice(&all.map(|protocol| (protocol.as_str(), protocol)))
        });
        let mtls = object.optional("mtls", Mtls::read);
        let probes = object.list("probes", path_pattern);
        let protocol = protocol.unwrap_or_default();
        if !probes.is_empty() && !protocol.is_http() {
            object.refuse("has `probes` on a tcp port; paths are known on http, http2 and grpc ports only");
        }
        object.finish();
        Some(Self { name: name?, port: port?, target_port, protocol, mtls, probes })
    }

    /// Where the application listens.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// A path, or a path with `*` at its end for everything that begins so.
pub(crate) fn path_pattern(field: Field<'_>) -> Option<String> {
    let path = field.clone().request_path()?;
    if path.strip_suffix('*').unwrap_or(&path).contains('*') {
        field.refuse(format!("{path:?} has a `*` that is not at the end; want /orders or /orders/*"));
        return None;
    }
    Some(path)
}

impl Mtls {
    pub(crate) fn read(field: Field<'_>) -> Option<Self> {
        field.choice(&[
            ("strict", Self::Strict),
            ("permissive", Self::Permissive),
            ("disabled", Self::Disabled),
        ])
    }
}

impl LoadBalancing {
    fn read(field: Field<'_>) -> Option<Self> {
        use BalancingPolicy as B;
        let mut object = field.object()?;
        let policy = object.optional("policy", |field| {
            field.choice(&[
                ("ewma", B::Ewma),
                ("leastRequest", B::LeastRequest),
                ("roundRobin", B::RoundRobin),
                ("random", B::Random),
                ("ringHash", B::RingHash),
                ("maglev", B::Maglev),
            ])
        });
        let hash = object.list("hash", HashKey::read);
        if let Some(field) = object.field("zoneAware")
            && field.clone().bool() == Some(true)
        {
            field.refuse("zone-aware load balancing is not supported yet; leave `zoneAware` out");
        }
        let policy = policy.unwrap_or_default();
        if matches!(policy, B::RingHash | B::Maglev) == hash.is_empty() {
            object.refuse(match hash.is_empty() {
                true => "has a hashing policy but nothing to hash; add `hash: [{header: x-user}]`",
                false => "has `hash`, which only the policies ringHash and maglev use",
            });
        }
        object.finish();
        Some(Self { policy, hash })
    }
}

impl HashKey {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        object.exactly_one(&["header", "cookie", "query", "sourceIp"]);
        let header = object.optional("header", Field::header_name).map(Self::Header);
        let cookie = object.optional("cookie", |field| field.checked(header_name)).map(Self::Cookie);
        let query = object.optional("query", Field::some_text).map(Self::Query);
        let source_ip = object.optional("sourceIp", |field| field.choice_true("sourceIp"));
        object.finish();
        header.or(cookie).or(query).or_else(|| source_ip.map(Self::SourceIp))
    }
}

impl Timeouts {
    pub(crate) fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let timeouts = Self {
            request: object.duration("request", NO_TIME..=HOUR * 24),
            idle: object.duration("idle", NO_TIME..=HOUR * 24),
            per_try: object.duration("perTry", MS..=HOUR),
        };
        object.finish();
        Some(timeouts)
    }
}

impl Retry {
    pub(crate) fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let retry = Self {
            attempts: object.optional("attempts", |field| field.integer(0..=100)),
            on: object.list("on", retry_condition),
            non_idempotent: object.optional("nonIdempotent", Field::bool),
            budget_percent: object.optional("budgetPercent", Field::percent),
            backoff: object.optional("backoff", Backoff::read),
        };
        object.finish();
        Some(retry)
    }
}

/// One condition: a word of Envoy's, or a status code.
fn retry_condition(field: Field<'_>) -> Option<String> {
    /// They need a list of their own, which the resource does not have.
    const NOT_ALONE: [&str; 2] = ["retriable-status-codes", "retriable-headers"];
    if let crate::node::Value::Number(_) = field.node.value {
        return field.integer(400..=599).map(|code: u16| code.to_string());
    }
    let text = field.clone().text()?;
    let is_code = text.parse::<u16>().is_ok_and(|code| (400..=599).contains(&code));
    let is_word = RetryOn::parse_token(&text).is_some() && !NOT_ALONE.contains(&text.as_str());
    if is_code || is_word {
        return Some(text);
    }
    let words: Vec<&str> =
        RetryOn::ALL.iter().map(|(_, word)| *word).filter(|word| !NOT_ALONE.contains(word)).collect();
    let hint = crate::reader::did_you_mean(&text, words.iter().copied());
    field.refuse(format!(
        "{} is not a retry condition, want a status code (400 to 599) or one of {}{hint}",
        field.node.describe(),
        words.join(", ")
    ));
    None
}

impl Backoff {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let base = object.duration("base", MS..=HOUR);
        let max = object.duration("max", MS..=HOUR);
        if let (Some(base), Some(max)) = (base, max)
            && max < base
        {
            object.refuse(format!("max {max} is shorter than base {base}"));
        }
        object.finish();
        Some(Self { base, max })
    }
}

impl CircuitBreaker {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let breaker = Self {
            max_connections: object.optional("maxConnections", |field| field.integer(1..=u32::MAX)),
            max_pending: object.optional("maxPending", |field| field.integer(1..=u32::MAX)),
            max_requests: object.optional("maxRequests", |field| field.integer(1..=u32::MAX)),
            max_retries: object.optional("maxRetries", |field| field.integer(0..=u32::MAX)),
        };
        object.finish();
        Some(breaker)
    }
}

impl OutlierDetection {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let outlier = Self {
            consecutive5xx: object.optional("consecutive5xx", |field| field.integer(0..=10_000)),
            interval: object.duration("interval", MS * 100..=HOUR),
            base_ejection: object.duration("baseEjection", MS * 100..=HOUR * 24),
            max_ejection_percent: object.optional("maxEjectionPercent", |field| field.integer(0..=100)),
        };
        object.finish();
        Some(outlier)
    }
}

impl HealthCheck {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        object.later("grpc", "gRPC health checks are");
        object.exactly_one(&["http", "tcp"]);
        let check = Self {
            http: object.optional("http", |field| {
                field.checked(|text| match text.starts_with('/') {
                    true => Ok(text.to_owned()),
                    false => Err("does not begin with `/`"),
                })
            }),
            tcp: object.optional("tcp", |field| field.choice_true("tcp")),
            port: object.optional("port", Field::label),
            interval: object.duration("interval", MS * 100..=HOUR),
            timeout: object.duration("timeout", MS..=HOUR),
            healthy: object.optional("healthy", |field| field.integer(1..=100)),
            unhealthy: object.optional("unhealthy", |field| field.integer(1..=100)),
        };
        object.finish();
        Some(check)
    }
}

impl ExternalEndpoint {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let address = object.required("address", |field| {
            let is_ip = matches!(&field.node.value, crate::node::Value::Text(text)
                if text.parse::<std::net::IpAddr>().is_ok());
            if is_ip { field.text() } else { dns_name(field) }
        });
        let port = object.optional("port", |field| field.integer(1..=u16::MAX));
        let weight = object.optional("weight", |field| field.integer(1..=65_535));
        let labels = object.optional("labels", |field| field.map(label_key, Field::text));
        object.finish();
        Some(Self { address: address?, port, weight, labels: labels.unwrap_or_default() })
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
