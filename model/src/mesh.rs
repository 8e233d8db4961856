//! What a sidecar is told about services, and the set of everything one proxy runs.

use std::collections::BTreeMap;

use crate::cluster::Cluster;
use crate::endpoint::LoadAssignment;
use crate::instance::Protocol;
use crate::listener::Listener;
use crate::name::ServiceName;
use crate::route::RouteConfiguration;

/// A service as a sidecar learns it on demand: `pillion.mesh.v1.MeshService`, an xDS resource.
///
/// The resource is asked for by any of its names (DNS names without trailing dot, lower case);
/// the answer carries the name asked. Removal is NXDOMAIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshService {
    /// The service.
    pub service: ServiceName,
    /// Every name it is called by, the canonical `<service>.<namespace>.<zone>` first.
    pub names: Vec<String>,
    /// Its stable index: the lower 16 bits of its VIP in every sidecar.
    pub index: u16,
    /// What callers may dial.
    pub ports: Vec<MeshPort>,
}

/// One port of a [`MeshService`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPort {
    /// The port's name.
    pub name: String,
    /// What callers dial.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Route configuration of an HTTP port; the clusters of a TCP port are in `clusters`.
    pub route_configuration: String,
    /// Every cluster that the port's routes may use: what to subscribe to (CDS, and EDS of the
    /// same names).
    pub clusters: Vec<String>,
}

/// Everything a proxy runs, by resource name: what ADS carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// LDS.
    pub listeners: BTreeMap<String, Listener>,
    /// RDS.
    pub routes: BTreeMap<String, RouteConfiguration>,
    /// CDS.
    pub clusters: BTreeMap<String, Cluster>,
    /// EDS.
    pub endpoints: BTreeMap<String, LoadAssignment>,
    /// On-demand services, by every name asked.
    pub services: BTreeMap<String, MeshService>,
}

/// Name of a sidecar's inbound listener.
pub const INBOUND_LISTENER: &str = "inbound";
/// Name of the route configuration that answers requests to destinations outside the mesh: those that
/// it has no route for are forwarded.
pub const EGRESS_ROUTES: &str = "egress";
/// Name of the Host-routed outbound listener.
pub const OUTBOUND_LISTENER: &str = "outbound";
