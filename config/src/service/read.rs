//! Reads a Service.

use std::collections::BTreeMap;
use std::time::Duration;

use pillion_model::instance::Protocol;
use pillion_model::name::{DEFAULT_NAMESPACE, RESERVED_LABELS};
use pillion_model::retry::RetryOn;

use super::{
    Backoff, BalancingPolicy, CircuitBreaker, ExternalEndpoint, HashKey, HealthCheck, Import, LoadBalancing,
    Mtls, OutlierDetection, Port, Retry, Service, Timeouts,
};
use crate::mesh::dns_name;
use crate::reader::{Field, Object, header_name};
use crate::resource::Id;

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
        let export = object.list("export", crate::federation::trust_domain);
        let import = object.optional("import", Import::read);
        if object.has("import") {
            for other in ["endpoints", "export", "healthCheck"] {
                if object.has(other) {
                    object.refuse(format!("has `import` and `{other}`; its instances are another mesh's"));
                }
            }
        }
        if object.has("export") && object.has("endpoints") {
            object.refuse("has `export` and `endpoints`; what is outside the mesh is not exported");
        }
        if sni.is_some() && !object.has("endpoints") {
            object.refuse("has `sni` but no `endpoints`; sni is for services outside the mesh");
        }
        if health_check.is_some() && object.has("endpoints") {
            object.refuse("has `healthCheck` and `endpoints`; health checks are made by sidecars only");
        }
        if let Some(ports) = ports.as_ref().filter(|ports| ports.len() > PORTS_MAX) {
            object.refuse(format!("has {} ports, want at most {PORTS_MAX}", ports.len()));
        }
        object.finish();
        Some(Self {
            namespace: id.namespace,
            name: id.name,
            hosts,
            ports: ports?,
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
            export,
            import,
        })
    }
}

impl Import {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let trust_domain = object.required("trustDomain", crate::federation::trust_domain);
        let service = object.required("service", |field| field.service(DEFAULT_NAMESPACE));
        object.finish();
        Some(Self { trust_domain: trust_domain?, service: service?.to_string() })
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
