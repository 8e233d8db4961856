//! Resources in Envoy's JSON form.

use std::net::SocketAddr;

use serde_json::{Value, json};

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A listener at `address` whose routes come from `source`.
pub(crate) fn listener(name: &str, address: SocketAddr, routes: &str, source: &Value) -> Value {
    json!({
        "@type": LISTENER,
        "name": name,
        "address": socket(address),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": MANAGER,
                "stat_prefix": name,
                "rds": {"route_config_name": routes, "config_source": source},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
            },
        }]}],
    })
}

/// Routes by prefix to clusters.
pub(crate) fn routes(name: &str, to: &[(&str, &str)]) -> Value {
    let routes: Vec<Value> = to
        .iter()
        .map(|(prefix, cluster)| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster}}))
        .collect();
    json!({
        "@type": ROUTES,
        "name": name,
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
    })
}

/// A cluster whose endpoints come from `source`.
pub(crate) fn cluster(name: &str, connect_timeout: &str, source: &Value) -> Value {
    json!({
        "@type": CLUSTER,
        "name": name,
        "type": "EDS",
        "connect_timeout": connect_timeout,
        "eds_cluster_config": {"eds_config": source},
    })
}

/// The endpoints of a cluster.
pub(crate) fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"endpoint": {"address": socket(*address)}})).collect();
    json!({"@type": ENDPOINTS, "cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]})
}

pub(crate) fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
