//! Endpoints of a cluster (EDS).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::health::Health;
use crate::metadata::Fields;

/// All endpoints of one cluster. Envoy: `ClusterLoadAssignment`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadAssignment {
    /// The cluster's name (or its EDS service name).
    pub cluster: String,
    /// Groups by locality and priority.
    pub localities: Vec<LocalityEndpoints>,
    /// Share of requests dropped on purpose, per category. Envoy: `Policy.drop_overloads`.
    pub drops: Vec<(String, Fraction)>,
    /// Overprovisioning factor in percent. Default 140.
    pub overprovisioning: u32,
}

/// A share: `numerator` of `denominator` (100, 10 000 or 1 000 000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fraction {
    /// How many …
    pub numerator: u32,
    /// … of how many.
    pub denominator: u32,
}

impl Fraction {
    /// Whether the draw, uniform over all `u64`, falls within the share.
    pub fn hits(self, draw: u64) -> bool {
        draw % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// Endpoints of one locality at one priority. Envoy: `LocalityLbEndpoints`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// Relative share among localities; `None`: not weighted.
    pub weight: Option<u32>,
    /// 0 is used first.
    pub priority: u32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Region, zone, sub-zone; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Availability zone.
    pub zone: String,
    /// Part of a zone.
    pub sub_zone: String,
}

/// One endpoint. Envoy: `LbEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// What to dial: a sidecar's inbound port where there is one.
    pub address: HostAddress,
    /// Name for people (`hostname`): the instance id.
    pub hostname: String,
    /// Relative share, at least 1; default 1.
    pub weight: u32,
    /// Health as the registry combines it.
    pub health: Health,
    /// Endpoint metadata `envoy.lb` (subset selection), those that are texts.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Those that are not texts; other keys than in `labels`.
    pub other_labels: Fields,
    /// Endpoint metadata `envoy.transport_socket_match`: picks the cluster's transport socket.
    pub transport: Arc<BTreeMap<String, String>>,
}

/// An address, or a name to resolve (only in STRICT_DNS and LOGICAL_DNS clusters).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostAddress {
    /// Ready to dial.
    Socket(SocketAddr),
    /// To be resolved.
    Name {
        /// DNS name.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix domain socket's path.
    Pipe(String),
}

/// Key and value in [`Endpoint::transport`] of endpoints that have a sidecar.
pub const TRANSPORT_MTLS: (&str, &str) = ("tlsMode", "pillion");
