//! One proxy with an Envoy bootstrap, and no mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use pillion_tests::support::{DEADLINE, Process, eventually, http as plain};
use tempfile::TempDir;

use super::load::{Load, Target};
use super::origin::{Origin, Temper};
use super::{judge, random, requests};

/// Requests per second.
const RATE: usize = 1500;

const ALL: &[(Method, bool)] =
    &[(Method::GET, false), (Method::POST, true), (Method::PUT, true), (Method::DELETE, false)];
const SAFE: &[(Method, bool)] = &[(Method::GET, false), (Method::PUT, true), (Method::DELETE, false)];

const TARGETS: &[Target] = &[
    Target { host: "orderly", path: "/", methods: ALL, grpc: false },
    Target { host: "careless", path: "/", methods: SAFE, grpc: false },
    Target { host: "http2", path: "/", methods: &[(Method::POST, true)], grpc: true },
];

/// A proxy in front of these applications, by host.
pub(crate) async fn proxy(folder: &TempDir, origins: &[(&str, &str, SocketAddr)]) -> (Process, SocketAddr) {
    let file = folder.path().join("bootstrap.json");
    std::fs::write(&file, bootstrap(origins).to_string()).expect("written");
    let arguments = ["proxy", "--workers", "1", "--admin", "127.0.0.1:0", "--envoy-config"];
    let file = file.display().to_string();
    let process = Process::pillion("proxy", arguments.into_iter().chain([file.as_str()]));
    let address = process.bound("web").await;
    (process, address)
}

/// `origins`: name and host, the conditions of retries, and where.
fn bootstrap(origins: &[(&str, &str, SocketAddr)]) -> serde_json::Value {
    let address = |at: &SocketAddr| serde_json::json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let hosts: Vec<_> = origins
        .iter()
        .map(|(name, retry_on, _)| {
            let retry = serde_json::json!({"retry_on": retry_on, "num_retries": 3});
            let route = serde_json::json!({"cluster": name, "timeout": "15s", "retry_policy": retry});
            serde_json::json!({"name": name, "domains": [name], "routes": [{"match": {"prefix": "/"}, "route": route}]})
        })
        .collect();
    let clusters: Vec<_> = origins
        .iter()
        .map(|(name, _, at)| {
            let mut cluster = serde_json::json!({
                "name": name,
                "type": "STATIC",
                "circuit_breakers": {"thresholds": [{"max_retries": 100}]},
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": address(at)}},
                ]}]},
            });
            if *name == "http2" {
                cluster["typed_extension_protocol_options"] = serde_json::json!({
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                });
            }
            cluster
        })
        .collect();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    serde_json::json!({"static_resources": {
        "listeners": [{"name": "web", "address": address(&any), "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": kind("network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "web",
                "route_config": {"virtual_hosts": hosts},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": kind("http.router.v3.Router")},
                }],
            },
        }]}]}],
        "clusters": clusters,
    }})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_through_one_proxy() {
    let (mut rng, load) = (random(), Load::new(requests(), RATE));
    let folder = tempfile::tempdir().expect("a folder");
    let mut origins = Vec::new();
    for (name, temper) in
        [("orderly", Temper::Orderly), ("careless", Temper::Careless), ("http2", Temper::Http2)]
    {
        origins.push(Origin::start(name, temper, &Arc::clone(&load.ledger), &mut rng).await);
    }
    let [orderly, careless, http2] = [0, 1, 2].map(|at: usize| origins[at].address);
    let nothing_sent = "connect-failure,refused-stream,reset-before-request";
    let origins = [
        ("orderly", nothing_sent, orderly),
        ("careless", nothing_sent, careless),
        ("http2", nothing_sent, http2),
    ];
    let (_process, address) = proxy(&folder, &origins).await;
    eventually("the proxy answers", DEADLINE, || async {
        let page = plain::get(address, "orderly", "/").await?;
        if page.status == 200 { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await;
    let outcome = load.run(address, TARGETS, rng).await;
    judge(&outcome, load.requests);
}
