//! An instance as the catalog knows it: what it registered, and how it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::health::HealthInputs;
use crate::name::{InstanceId, ServiceName};

/// The protocol spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1 (the sidecar also takes HTTP/2 from callers).
    #[default]
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Anything else: bytes are carried as they are.
    Tcp,
}

impl Protocol {
    /// Whether requests (rather than bytes) are carried.
    pub fn is_http(self) -> bool {
        self != Self::Tcp
    }

    /// The word used in files and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    /// Reads the word used in files and in the API.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Http2, Self::Grpc, Self::Tcp].into_iter().find(|p| p.as_str() == text)
    }
}

/// One port of a registered instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePort {
    /// The port callers without a sidecar dial at the instance's address.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Where the instance's sidecar reaches the application; default `127.0.0.1:<port>`.
    pub app_address: Option<SocketAddr>,
}

/// One registered instance with its health inputs: the unit of the catalog.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Unique within the service.
    pub id: InstanceId,
    /// Where it is reached.
    pub address: IpAddr,
    /// Ports by name.
    pub ports: Arc<BTreeMap<String, InstancePort>>,
    /// The sidecar's mutual-TLS port (15006 usually); `None`: the instance has no sidecar.
    pub inbound_port: Option<u16>,
    /// Where `/metrics` is served, for Prometheus discovery.
    pub metrics_port: Option<u16>,
    /// Labels: subsets select by them.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Free text for people; selects nothing.
    pub metadata: Arc<BTreeMap<String, String>>,
    /// Relative share of traffic, 0 to 65535; default 100. 0 takes none.
    pub weight: u32,
    /// Availability zone; empty: unknown.
    pub zone: String,
    /// How long the registration lives unrenewed: 2 s to 24 h, or [`TTL_NEVER`].
    pub ttl: Duration,
    /// Rises with every start of the instance: messages of an older one are refused.
    pub generation: u64,
    /// The four health inputs.
    pub health: HealthInputs,
}

impl Instance {
    /// Takes what is the same in `other` from there: instances of a service differ in little, and their
    /// maps are then in memory once.
    pub fn share_with(&mut self, other: &Self) {
        if self.service == other.service {
            self.service = other.service.clone();
        }
        share(&mut self.ports, &other.ports);
        share(&mut self.labels, &other.labels);
        share(&mut self.metadata, &other.metadata);
    }
}

fn share<T: PartialEq>(ours: &mut Arc<T>, other: &Arc<T>) {
    if ours == other {
        *ours = Arc::clone(other);
    }
}

/// Default of [`Instance::weight`].
pub const WEIGHT_DEFAULT: u32 = 100;
/// Default of [`Instance::ttl`]: three beats of 10 s.
pub const TTL_DEFAULT: Duration = Duration::from_secs(30);
/// Shortest [`Instance::ttl`].
pub const TTL_MIN: Duration = Duration::from_secs(2);
/// Longest [`Instance::ttl`].
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// [`Instance::ttl`] of an instance that nobody's silence takes out: it stays until it is deregistered.
pub const TTL_NEVER: Duration = Duration::from_millis(u64::MAX);
