//! Envoy bootstraps as files: what is read, what is refused and where, what has no effect.

#![expect(clippy::unwrap_used, reason = "a test")]

mod fixtures;

use pillion_model::cluster::{Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::listener::Terminal;
use pillion_model::mesh::Resources;
use pillion_xds::bootstrap::{read_bootstrap, to_static_bootstrap};
use pillion_xds::encode::{Dialect, EnvoyOptions, EnvoySecrets, encode_cluster, encode_listener};
use pillion_xds::json::to_json;
use serde_json::{Value, json};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// What people have: a front proxy with one cluster, in older and newer forms of fields.
fn front_proxy() -> Value {
    json!({
        "node": {"id": "front", "cluster": "edge", "metadata": {"rack": 7}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        "static_resources": {
            "listeners": [{
                "name": "front",
                "address": {"socket_address": {"address": "0.0.0.0", "port_value": 8080}},
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": HCM,
                        "stat_prefix": "front",
                        "route_config": {
                            "name": "local",
                            "virtual_hosts": [{
                                "name": "all",
                                "domains": ["*"],
                                "routes": [{
                                    "match": {"prefix": "/", "headers": [{"name": "X-Old", "exact_match": "1"}]},
                                    "route": {"cluster": "app", "timeout": "3s"},
                                }],
                            }],
                        },
                        "http_filters": [{
                            "name": "envoy.filters.http.router",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                            },
                        }],
                    },
                }]}],
            }],
            "clusters": [{
                "name": "app",
                "type": "STRICT_DNS",
                "lb_policy": "LEAST_REQUEST",
                "connect_timeout": "0.25s",
                "http2_protocol_options": {},
                "load_assignment": {
                    "cluster_name": "app",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                        "socket_address": {"address": "app.example.com", "port_value": 80},
                    }}}]}],
                },
            }],
        },
    })
}

const FILTER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const CLUSTER: &str = "/static_resources/clusters/0";
const LISTENER: &str = "/static_resources/listeners/0";

/// The front proxy with one field set.
fn with(parent: &str, field: &str, value: Value) -> Value {
    let mut bootstrap = front_proxy();
    let parent = bootstrap.pointer_mut(parent).unwrap_or_else(|| panic!("{parent} exists"));
    parent.as_object_mut().unwrap().insert(field.to_owned(), value);
    bootstrap
}

#[test]
fn a_front_proxy_is_read() {
    let bootstrap = read_bootstrap(&front_proxy()).unwrap();
    assert_eq!(bootstrap.node.id, "front");
    assert_eq!(bootstrap.node.metadata, json!({"rack": 7.0}));
    assert_eq!(bootstrap.admin, Some("127.0.0.1:9901".parse().unwrap()));
    assert_eq!(bootstrap.ignored, Vec::<String>::new());
    let cluster = &bootstrap.resources.clusters["app"];
    assert_eq!(cluster.protocol, UpstreamProtocol::Http2);
    assert_eq!(cluster.load_balancing, LoadBalancing::LeastRequest { choices: 2 });
    assert!(matches!(cluster.discovery, Discovery::StrictDns { .. }));
    let listener = &bootstrap.resources.listeners["front"];
    assert!(
        matches!(&listener.filter_chains[0].terminal, Terminal::Http(http) if http.stat_prefix == "front")
    );
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    let filters = |json: Value| with(FILTER, "http_filters", json);
    let router = || front_proxy().pointer(FILTER).unwrap()["http_filters"][0].clone();
    let lua = json!({
        "name": "lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": "-- nothing"},
        },
    });
    let hcm = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    let cluster = "static_resources.clusters[0]";
    let listener = "static_resources.listeners[0]";
    let route = format!("{hcm}.route_config.virtual_hosts[0].routes[0]");
    let at_route = format!("{FILTER}/route_config/virtual_hosts/0/routes/0");
    for (bootstrap, want) in [
        (
            filters(json!([lua, router()])),
            format!(
                "{hcm}.http_filters[0].typed_config.@type: envoy.extensions.filters.http.lua.v3.Lua is not supported; \
                 supported: router, rbac, fault, cors"
            ),
        ),
        (
            filters(json!([])),
            format!("{hcm}.http_filters: want exactly one envoy.filters.http.router, as the last"),
        ),
        (
            with(FILTER, "codec_type", json!("HTTP3")),
            format!("{hcm}.codec_type: is not supported; supported: AUTO, HTTP1, HTTP2"),
        ),
        (
            with(FILTER, "strip_trailing_host_dot", json!(true)),
            format!("{hcm}.strip_trailing_host_dot: is not supported"),
        ),
        (
            with(FILTER, "internal_address_config", json!({"unix_sockets": true})),
            format!("{hcm}.internal_address_config.unix_sockets: is not supported"),
        ),
        (with(FILTER, "via", json!("proxy")), format!("{hcm}.via: is not supported")),
        (
            with(
                FILTER,
                "common_http_protocol_options",
                json!({"headers_with_underscores_action": "REJECT_REQUEST"}),
            ),
            format!("{hcm}.common_http_protocol_options.headers_with_underscores_action: is not supported"),
        ),
        (
            with(
                &at_route,
                "typed_per_filter_config",
                json!({"mine": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
                }}),
            ),
            format!(
                "{route}.typed_per_filter_config[\"mine\"]: is for no filter that runs here; want `envoy.filters.http.rbac`"
            ),
        ),
        (
            with(&format!("{at_route}/route"), "hedge_policy", json!({"hedge_on_per_try_timeout": true})),
            format!("{route}.route.hedge_policy: is not supported"),
        ),
        (
            with(&format!("{at_route}/route"), "retry_policy", json!({"retry_on": "5xx,sometimes"})),
            format!("{route}.route.retry_policy.retry_on: `sometimes` is not supported"),
        ),
        (
            with(&format!("{at_route}/match"), "tls_context", json!({"presented": true})),
            format!("{route}.match.tls_context: is not supported"),
        ),
        (with(LISTENER, "bind_to_port", json!(false)), format!("{listener}.bind_to_port: is not supported")),
        (
            with(LISTENER, "address", json!({"pipe": {"path": "/tmp/x"}})),
            format!("{listener}.address.pipe: is not supported; supported: socket_address"),
        ),
        (
            with(CLUSTER, "lb_policy", json!("CLUSTER_PROVIDED")),
            format!("{cluster}.lb_policy: is not supported"),
        ),
        (
            with(
                CLUSTER,
                "health_checks",
                json!([{
                    "timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
                    "custom_health_check": {"name": "redis"},
                }]),
            ),
            format!("{cluster}.health_checks[0].custom_health_check: is not supported"),
        ),
        (
            with(CLUSTER, "type", json!("STATIC")),
            format!(
                "{cluster}.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \
                 got `app.example.com`, want an IP address"
            ),
        ),
        (
            with(
                CLUSTER,
                "transport_socket",
                json!({"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": {"tls_params": {"cipher_suites": ["AES128-SHA"]}},
                }}),
            ),
            format!(
                "{cluster}.transport_socket.typed_config.common_tls_context.tls_params.cipher_suites: is not supported"
            ),
        ),
        (
            with("", "dynamic_resources", json!({"cds_config": {"ads": {}}})),
            "dynamic_resources.cds_config: `ads` needs ads_config beside it".to_owned(),
        ),
        (
            with("", "overload_manager", json!({"resource_monitors": []})),
            "overload_manager: is not supported".to_owned(),
        ),
    ] {
        let error = read_bootstrap(&bootstrap).map(|read| read.ignored).unwrap_err();
        assert!(
            error.problems.iter().any(|problem| problem.to_string().starts_with(&want)),
            "{error}\nwant {want}"
        );
    }
}

#[test]
fn what_is_written_wrong_is_found_by_its_path() {
    let hcm = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    for (bootstrap, want) in [
        (
            with(FILTER, "stat_prefx", json!("x")),
            format!("{hcm}.stat_prefx: is not a field of HttpConnectionManager; did you mean `stat_prefix`?"),
        ),
        (with(CLUSTER, "type", json!("NO_DNS")), "static_resources.clusters[0].type: ".to_owned()),
        (
            with(CLUSTER, "connect_timeout", json!("soon")),
            "static_resources.clusters[0].connect_timeout: ".to_owned(),
        ),
        (
            with(LISTENER, "filter_chains", json!({"filters": []})),
            "static_resources.listeners[0].filter_chains: ".to_owned(),
        ),
        (
            with(
                FILTER,
                "http_filters",
                json!([{"name": "x", "typed_config": {"@type": "type.googleapis.com/no.Such"}}]),
            ),
            format!("{hcm}.http_filters[0].typed_config.@type: no.Such is not a type of Envoy's API v3"),
        ),
    ] {
        let error = read_bootstrap(&bootstrap).map(|read| read.ignored).unwrap_err();
        let all: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
        assert!(all.len() == 1 && all[0].starts_with(&want), "{all:#?}\nwant {want}");
    }
}

#[test]
fn every_mistake_is_reported_in_one_run() {
    let mut bootstrap = with(CLUSTER, "dns_resolvers", json!([{"pipe": {"path": "x"}}]));
    bootstrap["static_resources"]["listeners"][0]["transparent"] = json!(true);
    bootstrap["overload_manager"] = json!({});
    let error = read_bootstrap(&bootstrap).unwrap_err();
    let paths: Vec<&str> = error.problems.iter().map(|problem| problem.path.as_str()).collect();
    let want = ["static_resources.listeners[0].transparent", "static_resources.clusters[0].dns_resolvers"];
    assert!(want.iter().all(|path| paths.contains(path)), "{paths:?}");
}

#[test]
fn what_is_only_observed_is_listed() {
    let hcm = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config";
    for (bootstrap, want) in [
        (with("", "stats_flush_interval", json!("10s")), "stats_flush_interval".to_owned()),
        (with(LISTENER, "stat_prefix", json!("x")), "static_resources.listeners[0].stat_prefix".to_owned()),
        (with(FILTER, "tracing", json!({})), format!("{hcm}.tracing")),
        (
            with(
                FILTER,
                "access_log",
                json!([{"name": "grpc", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                }}]),
            ),
            format!("{hcm}.access_log[0].typed_config.@type"),
        ),
        (with(CLUSTER, "alt_stat_name", json!("x")), "static_resources.clusters[0].alt_stat_name".to_owned()),
    ] {
        assert_eq!(read_bootstrap(&bootstrap).unwrap().ignored, [want]);
    }
}

/// What is sent to Envoys can be run by ourselves.
#[test]
fn our_own_static_bootstraps_are_read() {
    let options = EnvoyOptions {
        secrets: EnvoySecrets::Pem {
            certificate: "chain.pem".to_owned(),
            key: "key.pem".to_owned(),
            roots: "roots.pem".to_owned(),
        },
    };
    let names = |resources: &Resources| {
        let all = resources.listeners.keys().chain(resources.clusters.keys());
        all.cloned().collect::<Vec<String>>()
    };
    for resources in [fixtures::inbound(), fixtures::outbound()] {
        let written = to_static_bootstrap(&resources, &options).unwrap();
        let read = read_bootstrap(&written).unwrap_or_else(|error| panic!("{error}\n{written:#}"));
        assert_eq!(names(&read.resources), names(&resources));
        assert_eq!(read.ignored, Vec::<String>::new());
    }
}

#[test]
fn resources_are_shown_with_their_types() {
    let resources = fixtures::inbound();
    let listener = encode_listener(&resources.listeners["inbound"], Dialect::Pillion);
    let shown = to_json(&listener.body).unwrap();
    assert_eq!(shown["@type"], "type.googleapis.com/envoy.config.listener.v3.Listener");
    assert_eq!(shown["filter_chains"][0]["filters"][0]["typed_config"]["@type"], HCM);
    assert_eq!(shown["filter_chains"][0]["metadata"]["filter_metadata"]["pillion"]["markLocalReplies"], true);
    let cluster = encode_cluster(&fixtures::outbound().clusters["ewma"], Dialect::Pillion);
    let shown = to_json(&cluster.body).unwrap();
    let policy = &shown["load_balancing_policy"]["policies"][0]["typed_extension_config"];
    assert_eq!(policy["typed_config"]["type_url"], "type.googleapis.com/pillion.mesh.v1.Ewma");
}
