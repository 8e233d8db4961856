//! Outbound clusters of a service.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pillion_config::mesh::Defaults;
use pillion_config::service::{BalancingPolicy, ExternalEndpoint, HashKey, Import, Mtls};
use pillion_model::cluster::{
    CircuitBreakers, Cluster, Destination, Discovery, LoadBalancing, OutlierDetection, RetryBudget,
    TransportMatch, UpstreamProtocol,
};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, LocalityEndpoints, TRANSPORT_MTLS};
use pillion_model::health::Health;
use pillion_model::instance::{Protocol, WEIGHT_DEFAULT};
use pillion_model::matcher::StringMatcher;
use pillion_model::name::{ServiceName, SpiffeId, TrustDomain, outbound_cluster};
use pillion_model::route::{HashPolicy, HashSource};
use pillion_model::tls::{
    NameKind, NameMatcher, Roots, TlsVersion, UpstreamTls, Validation, federated_secret,
};
use pillion_net::tls::mesh_client_context;

use super::endpoint::{OVERPROVISIONING, has_labels};
use super::{PortView, ServiceView};

/// Envoy's default.
const PANIC_THRESHOLD_PERCENT: u32 = 50;
/// Time to open a connection to an instance, TCP and TLS. Shorter than Envoy's default of 5 s: an
/// instance that vanished with its address answers nothing, and another one is asked sooner.
const MESH_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time to open a connection to a service outside the mesh: Envoy's default.
const EXTERNAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed after this: Envoy's default.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often names of services outside the mesh are resolved: Envoy's default.
const DNS_REFRESH: Duration = Duration::from_secs(5);
/// Retries at once, in percent of requests in flight.
const BUDGET_PERCENT: f64 = 20.0;
/// Most instances left out at once, in percent.
const MAX_EJECTION_PERCENT: u32 = 50;

impl ServiceView<'_> {
    /// Whether addresses outside the mesh serve it.
    pub(super) fn is_external(&self) -> bool {
        self.service.is_some_and(|service| !service.endpoints.is_empty())
    }

    /// The service of another mesh that serves it, if one does.
    pub(super) fn import(&self) -> Option<&Import> {
        self.service?.import.as_ref()
    }

    /// Every subset with its labels; first the one of all instances, whose name is empty.
    pub(super) fn subsets(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>)> {
        static ALL: BTreeMap<String, String> = BTreeMap::new();
        let named = self.service.into_iter().flat_map(|service| &service.subsets);
        std::iter::once(("", &ALL)).chain(named.map(|(name, labels)| (name.as_str(), labels)))
    }
}

/// One cluster for each port and subset.
pub(super) fn clusters(view: &ServiceView<'_>) -> Vec<Cluster> {
    let mut clusters = Vec::new();
    for port in view.ports {
        for (subset, labels) in view.subsets() {
            clusters.push(cluster(view, port, subset, labels));
        }
    }
    clusters
}

fn cluster(
    view: &ServiceView<'_>,
    port: &PortView,
    subset: &str,
    labels: &BTreeMap<String, String>,
) -> Cluster {
    let name = outbound_cluster(&port.name, subset, view.name);
    let external = view.service.filter(|service| !service.endpoints.is_empty());
    let (discovery, tls, transports) = match external {
        Some(service) => {
            let tls = service.sni.as_deref().map(|sni| external_tls(sni, port.protocol));
            (external_discovery(&service.endpoints, &name, port, labels), tls, Vec::new())
        }
        None => {
            let (tls, transports) = match view.import() {
                Some(import) => (imported_tls(view, import, port), Vec::new()),
                None => mesh_tls(view, port),
            };
            (Discovery::Eds { service_name: String::new() }, tls, transports)
        }
    };
    let may_negotiate = tls.is_some() || transports.iter().any(|transport| transport.tls.is_some());
    Cluster {
        discovery,
        connect_timeout: if external.is_some() { EXTERNAL_CONNECT_TIMEOUT } else { MESH_CONNECT_TIMEOUT },
        load_balancing: load_balancing(view),
        slow_start: None,
        subsets: None,
        limits: limits(view),
        limits_high: limits(view),
        outlier_detection: outlier_detection(view),
        // Instances that are down are not among the endpoints. When most of the others are ejected,
        // sending them traffic beats refusing it.
        health_check: None,
        panic_threshold_percent: PANIC_THRESHOLD_PERCENT,
        protocol: match port.protocol {
            Protocol::Http if may_negotiate => UpstreamProtocol::Auto,
            Protocol::Http | Protocol::Tcp => UpstreamProtocol::Http1,
            Protocol::Http2 | Protocol::Grpc => UpstreamProtocol::Http2,
        },
        idle_timeout: Some(IDLE_TIMEOUT),
        requests_per_connection_max: 0,
        tls,
        transports,
        destination: Some(Destination {
            service: view.name.to_string(),
            subset: subset.to_owned(),
            port: port.name.clone(),
        }),
        name,
    }
}

/// TLS of endpoints with and without sidecar.
fn mesh_tls(view: &ServiceView<'_>, port: &PortView) -> (Option<UpstreamTls>, Vec<TransportMatch>) {
    let mesh = view.input.resources.mesh();
    let trust_domain = TrustDomain::parse(&mesh.trust_domain).unwrap_or_default();
    let identity = SpiffeId::service(trust_domain, view.name.clone());
    let alpn: &[&str] = if port.protocol.is_http() { &["h2"] } else { &[] };
    let tls = mesh_client_context(&[identity], &view.name.sni(&port.name, &mesh.zone), alpn);
    match port.mtls {
        Mtls::Disabled => (None, Vec::new()),
        // Whatever the endpoint's metadata say: without mutual TLS nothing is sent.
        Mtls::Strict => (Some(tls), Vec::new()),
        Mtls::Permissive => {
            let criteria = [(TRANSPORT_MTLS.0.to_owned(), TRANSPORT_MTLS.1.to_owned())].into();
            let meshed = TransportMatch { name: "mtls".to_owned(), criteria, tls: Some(tls) };
            let plain = TransportMatch { name: "plaintext".to_owned(), criteria: BTreeMap::new(), tls: None };
            (None, vec![meshed, plain])
        }
    }
}

/// TLS to a service of another mesh: its roots alone, and the very service it is there. Until that mesh has
/// told of it, it has no endpoints either.
fn imported_tls(view: &ServiceView<'_>, import: &Import, port: &PortView) -> Option<UpstreamTls> {
    let sni =
        view.input.imported(import).and_then(|told| told.ports.get(&port.name)).map(|it| it.sni.as_str());
    let identity =
        TrustDomain::parse(&import.trust_domain).ok().zip(import.service.parse::<ServiceName>().ok());
    let (domain, service) = identity.expect("checked when the resource was read");
    let alpn: &[&str] = if port.protocol.is_http() { &["h2"] } else { &[] };
    let identity = SpiffeId::service(domain.clone(), service);
    let mut tls = mesh_client_context(&[identity], sni.unwrap_or_default(), alpn);
    if let Some(validation) = &mut tls.validation {
        validation.roots = Roots::Secret(federated_secret(&domain));
    }
    Some(tls)
}

/// TLS to a service outside the mesh: the system's roots, and the name that is asked for.
fn external_tls(sni: &str, protocol: Protocol) -> UpstreamTls {
    let alpn: &[&str] = match protocol {
        Protocol::Http => &["h2", "http/1.1"],
        Protocol::Http2 | Protocol::Grpc => &["h2"],
        Protocol::Tcp => &[],
    };
    let name = NameMatcher { kind: NameKind::Dns, matcher: StringMatcher::exact(sni) };
    UpstreamTls {
        certificate: None,
        validation: Some(Validation { roots: Roots::System, names: vec![name] }),
        sni: sni.to_owned(),
        alpn: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
    }
}

fn external_discovery(
    endpoints: &[ExternalEndpoint],
    cluster: &str,
    port: &PortView,
    labels: &BTreeMap<String, String>,
) -> Discovery {
    let chosen = endpoints.iter().filter(|endpoint| has_labels(&endpoint.labels, labels));
    let endpoints: Vec<Endpoint> = chosen.map(|endpoint| external_endpoint(endpoint, port)).collect();
    let has_names = endpoints.iter().any(|endpoint| matches!(endpoint.address, HostAddress::Name { .. }));
    let assignment = LoadAssignment {
        cluster: cluster.to_owned(),
        localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
        drops: Vec::new(),
        overprovisioning: OVERPROVISIONING,
    };
    if has_names {
        Discovery::StrictDns { assignment, refresh: DNS_REFRESH }
    } else {
        Discovery::Static(assignment)
    }
}

fn external_endpoint(endpoint: &ExternalEndpoint, port: &PortView) -> Endpoint {
    let number = endpoint.port.unwrap_or(port.target_port);
    Endpoint {
        address: match endpoint.address.parse::<IpAddr>() {
            Ok(ip) => HostAddress::Socket(SocketAddr::new(ip, number)),
            Err(_) => HostAddress::Name { host: endpoint.address.clone(), port: number },
        },
        hostname: endpoint.address.clone(),
        weight: endpoint.weight.unwrap_or(WEIGHT_DEFAULT),
        health: Health::Serving,
        labels: endpoint.labels.clone().into(),
        other_labels: Default::default(),
        transport: Arc::default(),
    }
}

fn load_balancing(view: &ServiceView<'_>) -> LoadBalancing {
    use BalancingPolicy as B;
    let policy = view.service.and_then(|service| service.load_balancing.as_ref());
    match policy.map(|policy| policy.policy).unwrap_or_default() {
        B::Ewma => LoadBalancing::Ewma,
        B::LeastRequest => LoadBalancing::LeastRequest { choices: 2 },
        B::RoundRobin => LoadBalancing::RoundRobin,
        B::Random => LoadBalancing::Random,
        B::RingHash => LoadBalancing::RingHash { size_min: 1024, size_max: 8_388_608 },
        B::Maglev => LoadBalancing::Maglev { table_size: 65_537 },
    }
}

/// What consistent hashing hashes: the first source a request has.
pub(super) fn hash_policies(view: &ServiceView<'_>) -> Vec<HashPolicy> {
    let policy = view.service.and_then(|service| service.load_balancing.as_ref());
    let keys = policy.into_iter().flat_map(|policy| &policy.hash);
    let source = |key: &HashKey| match key {
        HashKey::Header(name) => HashSource::Header(name.clone()),
        HashKey::Cookie(name) => HashSource::Cookie { name: name.clone(), ttl: None, path: String::new() },
        HashKey::Query(name) => HashSource::Query(name.clone()),
        HashKey::SourceIp(_) => HashSource::SourceIp,
    };
    keys.map(|key| HashPolicy { source: source(key), terminal: true }).collect()
}

fn limits(view: &ServiceView<'_>) -> CircuitBreakers {
    let default = CircuitBreakers::default();
    let breaker = view.service.and_then(|service| service.circuit_breaker.clone()).unwrap_or_default();
    let retries_max = breaker.max_retries.unwrap_or(default.retries_max);
    CircuitBreakers {
        connections_max: breaker.max_connections.unwrap_or(default.connections_max),
        pending_max: breaker.max_pending.unwrap_or(default.pending_max),
        requests_max: breaker.max_requests.unwrap_or(default.requests_max),
        retries_max,
        retry_budget: Some(RetryBudget { percent: budget_percent(view), concurrency_min: retries_max }),
    }
}

fn budget_percent(view: &ServiceView<'_>) -> f64 {
    let Defaults { retry: mesh, .. } = view.input.resources.mesh().defaults;
    let service = view.service.and_then(|service| service.retry.as_ref());
    service
        .and_then(|retry| retry.budget_percent)
        .or_else(|| mesh.and_then(|retry| retry.budget_percent))
        .unwrap_or(BUDGET_PERCENT)
}

fn outlier_detection(view: &ServiceView<'_>) -> Option<OutlierDetection> {
    let mut outlier = OutlierDetection { max_ejection_percent: MAX_EJECTION_PERCENT, ..Default::default() };
    // Only what the resource speaks of.
    outlier.success_rate.enforcing = 0;
    let Some(config) = view.service.and_then(|service| service.outlier_detection.as_ref()) else {
        return Some(outlier);
    };
    if config.consecutive5xx == Some(0) {
        return None;
    }
    outlier.consecutive_5xx = config.consecutive5xx.unwrap_or(outlier.consecutive_5xx);
    outlier.interval = config.interval.map_or(outlier.interval, |text| text.0);
    outlier.base_ejection = config.base_ejection.map_or(outlier.base_ejection, |text| text.0);
    outlier.max_ejection = outlier.max_ejection.max(outlier.base_ejection);
    outlier.max_ejection_percent = config.max_ejection_percent.unwrap_or(outlier.max_ejection_percent);
    Some(outlier)
}
