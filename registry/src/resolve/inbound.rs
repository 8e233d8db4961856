//! What a service's own sidecars run: the inbound listener and the clusters of the application.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pillion_config::service::Mtls;
use pillion_model::cluster::{CircuitBreakers, Cluster, Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_model::http::{
    ClientCertDetails, ForwardClientCert, HttpConnectionManager, HttpFilter, RouteSource, ServerHeader,
};
use pillion_model::instance::{Instance, InstancePort, Protocol};
use pillion_model::listener::{Direction, FilterChain, FilterChainMatch, Listener, TcpProxy, Terminal};
use pillion_model::matcher::StringMatcher;
use pillion_model::mesh::{INBOUND_LISTENER, Resources};
use pillion_model::name::{TrustDomain, inbound_cluster};
use pillion_model::rbac::Rbac;
use pillion_model::route::{
    FilterOverrides, Forward, HeaderChanges, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};
use pillion_model::tls::{ALL_ROOTS_SECRET, DownstreamTls, NameKind, NameMatcher, Roots};
use pillion_net::tls::mesh_server_context;

use super::endpoint::OVERPROVISIONING;
use super::policy::{Rules, only_probes};
use super::{MeshModel, PortView, ServiceModel, ServiceView};

/// What the sidecars of a service enforce and check.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InboundPolicy {
    /// By port.
    pub ports: Vec<InboundPort>,
    /// The check the sidecar makes of its application.
    pub health_check: Option<HealthCheckPlan>,
    /// Whose callers are let in beside our own, as far as the policies name them.
    pub exported_to: Vec<TrustDomain>,
}

/// One port.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundPort {
    /// The port.
    pub port: PortView,
    /// Authorization of requests that come with a certificate.
    pub filters: Vec<HttpFilter>,
    /// Authorization of requests that come in plaintext, where that is permitted.
    pub plaintext_filters: Vec<HttpFilter>,
    /// Authorization of connections (tcp).
    pub network_rules: Vec<Rbac>,
    /// Time without a byte in either direction; `None`: no limit.
    pub idle_timeout: Option<Duration>,
}

/// The check a sidecar makes of the application beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheckPlan {
    /// The port's name.
    pub port: String,
    /// What is asked.
    pub kind: ProbeKind,
    /// Time between checks.
    pub interval: Duration,
    /// Time for an answer.
    pub timeout: Duration,
    /// Successes in a row that make it healthy.
    pub healthy: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// GET of this path (with query) answers 2xx.
    Http(String),
    /// A connection opens.
    Tcp,
}

/// Time without a byte on tcp: Envoy's default.
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Upgrades an application may make.
pub(super) const UPGRADES: [&str; 2] = ["websocket", "CONNECT"];
/// Value of `server` in local replies.
pub(super) const SERVER_NAME: &str = "pillion";

/// What the sidecars of a service enforce and check.
pub(super) fn policy(view: &ServiceView<'_>) -> InboundPolicy {
    if view.is_external() || view.import().is_some() {
        return InboundPolicy::default();
    }
    let port = |port: &PortView| {
        let rules = Rules::of(view, port);
        InboundPort {
            port: port.clone(),
            filters: rules.http_filters(),
            plaintext_filters: match port.mtls {
                Mtls::Strict => vec![only_probes(&port.probes)],
                Mtls::Permissive | Mtls::Disabled => rules.with_probes(&port.probes).http_filters(),
            },
            network_rules: if port.protocol.is_http() { Vec::new() } else { rules.network_rules() },
            idle_timeout: idle_timeout(view, port.protocol),
        }
    };
    let exported = view.service.into_iter().flat_map(|service| &service.export);
    InboundPolicy {
        ports: view.ports.iter().map(port).collect(),
        health_check: health_check(view),
        exported_to: exported.filter_map(|domain| TrustDomain::parse(domain).ok()).collect(),
    }
}

fn idle_timeout(view: &ServiceView<'_>, protocol: Protocol) -> Option<Duration> {
    let service = view.service.and_then(|service| service.timeout.as_ref()).and_then(|timeout| timeout.idle);
    let mesh = view.input.resources.mesh().defaults.idle_timeout;
    let said = service.or_else(|| mesh.filter(|_| protocol.is_http()));
    let default =
        if protocol.is_http() { pillion_config::mesh::IDLE_TIMEOUT_DEFAULT } else { TCP_IDLE_TIMEOUT };
    Some(said.map_or(default, |text| text.0)).filter(|idle| !idle.is_zero())
}

fn health_check(view: &ServiceView<'_>) -> Option<HealthCheckPlan> {
    let check = view.service?.health_check.as_ref()?;
    let port = check.port.clone().or_else(|| view.ports.first().map(|port| port.name.clone()))?;
    Some(HealthCheckPlan {
        port,
        kind: check.http.clone().map_or(ProbeKind::Tcp, ProbeKind::Http),
        interval: check.interval.map_or(Duration::from_secs(5), |text| text.0),
        timeout: check.timeout.map_or(Duration::from_secs(1), |text| text.0),
        healthy: check.healthy.unwrap_or(2),
        unhealthy: check.unhealthy.unwrap_or(3),
    })
}

/// A sidecar's own configuration: the inbound listener and the clusters `inbound|<port>`.
///
/// Empty if the instance has no sidecar or its service is not in the model. Connections are told apart
/// by server name; plaintext is taken only where it was captured on its way to a port that permits it.
pub fn inbound(model: &MeshModel, instance: &Instance) -> Resources {
    let mut resources = Resources::default();
    let Some(inbound_port) = instance.inbound_port else { return resources };
    let Some(service) = model.services.get(&instance.service) else { return resources };
    let served: Vec<(&InboundPort, &InstancePort)> = served(service, instance).collect();
    for (port, registered) in &served {
        let cluster = application(&port.port, registered);
        resources.clusters.insert(cluster.name.clone(), cluster);
    }
    let mut chains = Vec::new();
    for (port, registered) in &served {
        chains.extend(Chains { model, service, port, registered, is_only: served.len() == 1 }.build());
    }
    let any: IpAddr = match instance.address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = Listener {
        name: INBOUND_LISTENER.to_owned(),
        address: Some(SocketAddr::new(any, inbound_port)),
        direction: Direction::Inbound,
        proxy_protocol: None,
        tls_inspector: true,
        original_dst: chains.iter().any(|chain| chain.matches.destination_port.is_some()),
        listener_filters_timeout: Duration::from_secs(15),
        filter_chains: chains,
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
    };
    resources.listeners.insert(listener.name.clone(), listener);
    resources
}

/// The service's ports that the instance serves.
fn served<'a>(
    service: &'a ServiceModel,
    instance: &'a Instance,
) -> impl Iterator<Item = (&'a InboundPort, &'a InstancePort)> {
    service.inbound.ports.iter().filter_map(|port| Some((port, port.port.of(instance)?)))
}

/// The application's own port.
fn application(port: &PortView, registered: &InstancePort) -> Cluster {
    let address =
        registered.app_address.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, registered.port)));
    let name = inbound_cluster(&port.name);
    let endpoint = Endpoint {
        address: HostAddress::Socket(address),
        hostname: String::new(),
        weight: 1,
        health: Health::Serving,
        labels: Default::default(),
        other_labels: Default::default(),
        transport: Default::default(),
    };
    // Callers keep the limits; a second set of them here would only hide whose limit was reached.
    let unlimited = CircuitBreakers {
        connections_max: u32::MAX,
        pending_max: u32::MAX,
        requests_max: u32::MAX,
        retries_max: u32::MAX,
        retry_budget: None,
    };
    Cluster {
        discovery: Discovery::Static(LoadAssignment {
            cluster: name.clone(),
            localities: vec![LocalityEndpoints { endpoints: vec![endpoint], ..Default::default() }],
            drops: Vec::new(),
            overprovisioning: OVERPROVISIONING,
        }),
        connect_timeout: Duration::from_secs(5),
        load_balancing: LoadBalancing::RoundRobin,
        slow_start: None,
        subsets: None,
        limits: unlimited.clone(),
        limits_high: unlimited,
        outlier_detection: None,
        health_check: None,
        panic_threshold_percent: 0,
        protocol: match port.protocol {
            Protocol::Http | Protocol::Tcp => UpstreamProtocol::Http1,
            Protocol::Http2 | Protocol::Grpc => UpstreamProtocol::Http2,
        },
        idle_timeout: Some(Duration::from_secs(3600)),
        requests_per_connection_max: 0,
        tls: None,
        transports: Vec::new(),
        destination: None,
        name,
    }
}

/// The filter chains of one port.
struct Chains<'a> {
    model: &'a MeshModel,
    service: &'a ServiceModel,
    port: &'a InboundPort,
    registered: &'a InstancePort,
    /// The instance serves no other port.
    is_only: bool,
}

impl Chains<'_> {
    fn build(&self) -> Vec<FilterChain> {
        let view = &self.port.port;
        let sni = self.service.service.service.sni(&view.name, &self.model.zone);
        let tls = "tls".to_owned();
        let by_name = FilterChainMatch {
            server_names: vec![sni],
            transport_protocol: tls.clone(),
            ..FilterChainMatch::default()
        };
        let mut chains = vec![self.secure("", by_name)];
        if self.is_only {
            // Without a server name, or with another one (gRPC sends its authority).
            let any_name = FilterChainMatch { transport_protocol: tls.clone(), ..Default::default() };
            chains.push(self.secure("|any-name", any_name));
        }
        if view.mtls == Mtls::Strict && view.probes.is_empty() {
            return chains;
        }
        // Captured on its way to the application: the destination is the application's port.
        let captured =
            FilterChainMatch { destination_port: Some(self.registered.port), ..FilterChainMatch::default() };
        let matches = FilterChainMatch { transport_protocol: "raw_buffer".to_owned(), ..captured.clone() };
        chains.push(FilterChain {
            name: format!("{}|plaintext", inbound_cluster(&view.name)),
            matches,
            tls: None,
            rbac: self.port.network_rules.clone(),
            terminal: self.terminal(&self.port.plaintext_filters),
        });
        // A chain is chosen by destination first: TLS to the same port needs one as well.
        let matches = FilterChainMatch { transport_protocol: tls, ..captured };
        chains.push(self.secure("|captured", matches));
        chains
    }

    fn secure(&self, suffix: &str, matches: FilterChainMatch) -> FilterChain {
        let alpn: &[&str] = if self.port.port.protocol.is_http() { &["h2", "http/1.1"] } else { &[] };
        FilterChain {
            name: format!("{}{suffix}", inbound_cluster(&self.port.port.name)),
            matches,
            tls: Some(self.tls(alpn)),
            rbac: self.port.network_rules.clone(),
            terminal: self.terminal(&self.port.filters),
        }
    }

    /// Callers from other meshes get no further than the handshake unless the service is exported there.
    fn tls(&self, alpn: &[&str]) -> DownstreamTls {
        let mut tls = mesh_server_context(alpn);
        let exported_to = &self.service.inbound.exported_to;
        if let Some(validation) = tls.validation.as_mut().filter(|_| !exported_to.is_empty()) {
            validation.roots = Roots::Secret(ALL_ROOTS_SECRET.to_owned());
            let domains = std::iter::once(&self.model.trust_domain).chain(exported_to);
            let of = |domain| StringMatcher::prefix(format!("spiffe://{domain}/"));
            validation.names =
                domains.map(|domain| NameMatcher { kind: NameKind::Uri, matcher: of(domain) }).collect();
        }
        tls
    }

    fn terminal(&self, filters: &[HttpFilter]) -> Terminal {
        let cluster = inbound_cluster(&self.port.port.name);
        if self.port.port.protocol.is_http() {
            return Terminal::Http(Box::new(self.manager(filters, cluster)));
        }
        Terminal::Tcp(TcpProxy {
            stat_prefix: cluster.clone(),
            clusters: vec![(cluster, 1)],
            idle_timeout: self.port.idle_timeout,
            connect_attempts: 1,
            access_logs: Vec::new(),
        })
    }

    fn manager(&self, filters: &[HttpFilter], cluster: String) -> HttpConnectionManager {
        let routes = RouteConfiguration {
            name: cluster.clone(),
            virtual_hosts: vec![VirtualHost {
                name: cluster.clone(),
                domains: vec!["*".to_owned()],
                routes: vec![Route {
                    name: cluster.clone(),
                    matches: RouteMatch::default(),
                    // Time is kept at the caller's side.
                    action: RouteAction::Forward(Box::new(Forward {
                        timeout: None,
                        ..Forward::to(cluster.as_str())
                    })),
                    headers: HeaderChanges::default(),
                    filters: FilterOverrides::default(),
                }],
                ..VirtualHost::default()
            }],
            ..RouteConfiguration::default()
        };
        let default = HttpConnectionManager::new(cluster, RouteSource::Inline(routes));
        HttpConnectionManager {
            filters: filters.iter().cloned().chain(default.filters.clone()).collect(),
            upgrades: UPGRADES.map(str::to_owned).to_vec(),
            client_cert: ForwardClientCert::SanitizeSet,
            client_cert_details: ClientCertDetails {
                subject: true,
                dns: true,
                uri: true,
                ..ClientCertDetails::default()
            },
            server_name: SERVER_NAME.to_owned(),
            server_header: ServerHeader::PassThrough,
            preserve_external_request_id: true,
            normalize_path: true,
            merge_slashes: true,
            stream_idle_timeout: self.port.idle_timeout,
            mark_local_replies: true,
            ..default
        }
    }
}
