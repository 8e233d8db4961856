//! What a sidecar is started with.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pillion_model::http::AccessLog;
use pillion_model::instance::{InstancePort, TTL_DEFAULT, WEIGHT_DEFAULT};
use pillion_model::name::{DEFAULT_DOMAIN, NodeId, ServiceName};
use pillion_net::bootstrap::Credential;
use pillion_net::resolve::Target;
use pillion_net::workload::Agent;
use pillion_xds::mesh;

use crate::admin::SetLogFilter;
use crate::outbound::Egress;

/// What a sidecar is started with.
#[derive(Clone)]
pub struct Options {
    /// The instance this sidecar rides beside.
    pub node: NodeId,
    /// The application's ports by name; none: it only calls, and is no instance of its service.
    pub ports: BTreeMap<String, InstancePort>,
    /// The registries, at 7071.
    pub registries: Vec<Target>,
    /// What the first certificate is asked for with; `None`: a stored identity must do.
    pub credential: Option<Credential>,
    /// A SPIFFE agent that gives the identity instead of the registry. Default: none.
    pub agent: Option<Agent>,
    /// The mesh's DNS zone, where it is not the registry that tells it. Default `mesh.internal`.
    pub mesh_domain: String,
    /// Where peers' sidecars connect. Default `0.0.0.0:15006`.
    pub inbound: SocketAddr,
    /// Where the application connects to reach others. Default `127.0.0.1:15001`.
    pub outbound: SocketAddr,
    /// Administration; loopback only. Default `127.0.0.1:15000`.
    pub admin: SocketAddr,
    /// `/metrics`, `/ready`, `/live`. Default `0.0.0.0:15020`.
    pub metrics: SocketAddr,
    /// Local DNS; loopback only. Default `127.0.0.1:15053`.
    pub dns: SocketAddr,
    /// The address to register; `None`: the one the registry is reached from.
    pub advertise: Option<Advertise>,
    /// Where configuration and identity are kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Labels of the instance.
    pub labels: BTreeMap<String, String>,
    /// Free text of the instance.
    pub metadata: BTreeMap<String, String>,
    /// Share of traffic. Default 100.
    pub weight: u32,
    /// Availability zone; empty: unknown.
    pub zone: String,
    /// How long the registration lives unrenewed.
    pub ttl: Duration,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Memory in bytes past which requests are refused; `None`: no limit.
    pub memory_max: Option<u64>,
    /// Destinations outside the mesh. Default: allowed, unless the mesh denies them.
    pub egress: Egress,
    /// Local ports of single services.
    pub upstreams: Vec<Upstream>,
    /// Services that are known from the start.
    pub dependencies: Vec<ServiceName>,
    /// A hosts file to keep; `None`: there is none.
    pub hosts_file: Option<PathBuf>,
    /// Access logs of inbound and outbound HTTP and TCP. Default: none.
    pub access_logs: Vec<AccessLog>,
    /// Changes the log filter at run time; `None`: not offered.
    pub set_log_filter: Option<SetLogFilter>,
    /// How long requests in flight may take when the sidecar leaves. Default 20 s.
    pub drain_grace: Duration,
}

/// The address an instance is reached at from outside, where that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address.
    pub address: IpAddr,
    /// The port that is mapped to the inbound listener; `None`: the listener's own.
    pub inbound_port: Option<u16>,
}

/// A local port of 127.0.0.1 that leads to one port of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The local port; 0 picks a free one.
    pub listen: u16,
    /// The service.
    pub service: ServiceName,
    /// The service's port, as callers dial it.
    pub port: u16,
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

impl Options {
    /// The defaults of DESIGN 2.3 for an instance with these ports.
    pub fn new(node: NodeId, ports: BTreeMap<String, InstancePort>, registries: Vec<Target>) -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            node,
            ports,
            registries,
            credential: None,
            agent: None,
            mesh_domain: DEFAULT_DOMAIN.to_owned(),
            inbound: any(INBOUND_PORT),
            outbound: local(OUTBOUND_PORT),
            admin: local(ADMIN_PORT),
            metrics: any(METRICS_PORT),
            dns: local(DNS_PORT),
            advertise: None,
            state_dir: None,
            labels: BTreeMap::new(),
            metadata: BTreeMap::new(),
            weight: WEIGHT_DEFAULT,
            zone: String::new(),
            ttl: TTL_DEFAULT,
            workers: 1,
            memory_max: None,
            egress: Egress::Allow,
            upstreams: Vec::new(),
            dependencies: Vec::new(),
            hosts_file: None,
            access_logs: Vec::new(),
            set_log_filter: None,
            drain_grace: DRAIN_GRACE,
        }
    }

    /// Where the application's port is reached from here.
    pub fn app_address(port: &InstancePort) -> SocketAddr {
        port.app_address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port.port).into())
    }

    /// The registration record. Ports 0 in `inbound` and `metrics` are given as bound.
    pub(super) fn instance(&self, inbound_port: u16, metrics_port: u16, generation: u64) -> mesh::Instance {
        let port = |port: &InstancePort| mesh::Port {
            port: port.port.into(),
            protocol: port.protocol.as_str().to_owned(),
            app_address: port.app_address.map(|address| address.to_string()).unwrap_or_default(),
        };
        let mapped = self.advertise.and_then(|advertise| advertise.inbound_port);
        mesh::Instance {
            namespace: self.node.service.namespace().to_owned(),
            service: self.node.service.service().to_owned(),
            id: self.node.instance.as_str().to_owned(),
            address: self.advertise.map(|advertise| advertise.address.to_string()).unwrap_or_default(),
            ports: self.ports.iter().map(|(name, have)| (name.clone(), port(have))).collect(),
            inbound_port: mapped.unwrap_or(inbound_port).into(),
            metrics_port: metrics_port.into(),
            labels: self.labels.clone().into_iter().collect(),
            metadata: self.metadata.clone().into_iter().collect(),
            weight: Some(self.weight),
            zone: self.zone.clone(),
            ttl_ms: u32::try_from(self.ttl.as_millis()).unwrap_or(u32::MAX),
            generation,
            ..mesh::Instance::default()
        }
    }
}

const INBOUND_PORT: u16 = 15006;
const OUTBOUND_PORT: u16 = 15001;
const ADMIN_PORT: u16 = 15000;
const METRICS_PORT: u16 = 15020;
const DNS_PORT: u16 = 15053;
const DRAIN_GRACE: Duration = Duration::from_secs(20);
