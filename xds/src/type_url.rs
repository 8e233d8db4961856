//! Type URLs of the resources carried by ADS, and the order in which they are pushed.

/// LDS.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// RDS.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// CDS.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// EDS.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// SDS.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// A service as a sidecar learns it on demand.
pub const SERVICE: &str = "type.googleapis.com/pillion.mesh.v1.MeshService";

/// Position of a type in a push: make before break, clusters first, what uses them later.
#[must_use]
pub fn rank(type_url: &str) -> u8 {
    match type_url {
        CLUSTER => 0,
        ENDPOINTS => 1,
        SECRET => 2,
        LISTENER => 3,
        ROUTE => 4,
        _ => 5,
    }
}

/// A short name of the type for metrics, logs and listings; `other` for what is not ours.
#[must_use]
pub fn label(type_url: &str) -> &'static str {
    match type_url {
        CLUSTER => "cluster",
        ENDPOINTS => "endpoints",
        SECRET => "secret",
        LISTENER => "listener",
        ROUTE => "route",
        SERVICE => "service",
        _ => "other",
    }
}
