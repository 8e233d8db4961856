//! The page of supported fields, `docs/envoy-fields.md`, is what the decoder says: every field of
//! Envoy's messages is set in a bootstrap, one at a time, and the bootstrap is read. Written anew by
//! `PILLION_WRITE_DOCS=1 cargo nextest run --workspace -E 'binary(fields)'`.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;
use std::path::Path;

use pillion_xds::bootstrap::read_bootstrap;
use pillion_xds::decode::Problem;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

/// Messages, and where the bootstrap below has one of each.
const MESSAGES: &[(&str, &str)] = &[
    ("config.listener.v3.Listener", LISTENER),
    ("config.listener.v3.FilterChain", "/filter_chains/0"),
    ("config.listener.v3.FilterChainMatch", "/filter_chains/0/filter_chain_match"),
    ("extensions.filters.network.tcp_proxy.v3.TcpProxy", "/filter_chains/1/filters/0/typed_config"),
    ("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", ""),
    ("config.route.v3.RouteConfiguration", "/route_config"),
    ("config.route.v3.VirtualHost", "/route_config/virtual_hosts/0"),
    ("config.route.v3.Route", "/route_config/virtual_hosts/0/routes/0"),
    ("config.route.v3.RouteMatch", "/route_config/virtual_hosts/0/routes/0/match"),
    ("config.route.v3.RouteAction", "/route_config/virtual_hosts/0/routes/0/route"),
    ("config.route.v3.RetryPolicy", "/route_config/virtual_hosts/0/routes/0/route/retry_policy"),
    (
        "config.route.v3.WeightedCluster.ClusterWeight",
        "/route_config/virtual_hosts/0/routes/1/route/weighted_clusters/clusters/0",
    ),
    ("config.route.v3.RedirectAction", "/route_config/virtual_hosts/0/routes/2/redirect"),
    ("config.route.v3.DirectResponseAction", "/route_config/virtual_hosts/0/routes/3/direct_response"),
    ("extensions.filters.http.rbac.v3.RBAC", "/http_filters/0/typed_config"),
    ("extensions.filters.http.fault.v3.HTTPFault", "/http_filters/1/typed_config"),
    ("extensions.filters.http.header_mutation.v3.HeaderMutation", "/http_filters/2/typed_config"),
    ("extensions.filters.http.header_mutation.v3.Mutations", "/http_filters/2/typed_config/mutations"),
    ("extensions.filters.http.buffer.v3.Buffer", "/http_filters/3/typed_config"),
    ("extensions.filters.http.health_check.v3.HealthCheck", "/http_filters/4/typed_config"),
    ("extensions.filters.http.local_ratelimit.v3.LocalRateLimit", "/http_filters/5/typed_config"),
    ("extensions.filters.http.jwt_authn.v3.JwtAuthentication", "/http_filters/6/typed_config"),
    ("extensions.filters.http.jwt_authn.v3.JwtProvider", "/http_filters/6/typed_config/providers/p"),
    ("extensions.filters.http.ext_authz.v3.ExtAuthz", "/http_filters/7/typed_config"),
    ("extensions.filters.http.ext_authz.v3.HttpService", "/http_filters/7/typed_config/http_service"),
    ("extensions.filters.http.router.v3.Router", "/http_filters/8/typed_config"),
    ("config.cluster.v3.Cluster", CLUSTER),
];
const LISTENER: &str = "/static_resources/listeners/0";
const CLUSTER: &str = "/static_resources/clusters/0";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

fn typed(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/envoy.extensions.{kind}").into();
    fields
}

fn filter(short: &str, kind: &str, fields: Value) -> Value {
    let config = typed(&format!("filters.http.{short}.v3.{kind}"), fields);
    json!({"name": format!("envoy.filters.http.{short}"), "typed_config": config})
}

fn bootstrap() -> Value {
    let uri = json!({"uri": "http://a.test/", "cluster": "app", "timeout": "1s"});
    let filters = json!([
        filter("rbac", "RBAC", json!({})),
        filter("fault", "HTTPFault", json!({})),
        filter("header_mutation", "HeaderMutation", json!({"mutations": {}})),
        filter("buffer", "Buffer", json!({"max_request_bytes": 1})),
        filter("health_check", "HealthCheck", json!({"pass_through_mode": false})),
        filter("local_ratelimit", "LocalRateLimit", json!({"stat_prefix": "a"})),
        filter(
            "jwt_authn",
            "JwtAuthentication",
            json!({"providers": {"p": {
                "local_jwks": {"inline_string": "{}"}
            }}})
        ),
        filter(
            "ext_authz",
            "ExtAuthz",
            json!({
                "transport_api_version": "V3", "http_service": {"server_uri": uri},
            })
        ),
        filter("router", "Router", json!({})),
    ]);
    let routes = json!([
        {"match": {"prefix": "/"}, "route": {"cluster": "app", "retry_policy": {}}},
        {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "app", "weight": 1}]}}},
        {"match": {"prefix": "/"}, "redirect": {}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 200}},
    ]);
    let manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "a",
            "route_config": {"virtual_hosts": [{"name": "a", "domains": ["*"], "routes": routes}]},
            "http_filters": filters,
        }),
    );
    let tcp = typed("filters.network.tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "a", "cluster": "app"}));
    json!({"static_resources": {
        "listeners": [{
            "name": "a",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
            "filter_chains": [
                {"filter_chain_match": {}, "filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                ]},
                {"filter_chain_match": {"destination_port": 2}, "filters": [
                    {"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp}
                ]},
            ],
        }],
        "clusters": [{"name": "app", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
            "cluster_name": "app",
        }}],
    }})
}

/// Where a message is in the bootstrap.
fn pointer(name: &str, at: &str) -> String {
    match at {
        LISTENER | CLUSTER => at.to_owned(),
        _ if name.starts_with("config.listener") || at.starts_with("/filter_chains") => {
            format!("{LISTENER}{at}")
        }
        _ => format!("{MANAGER}{at}"),
    }
}

/// `/a/0/b` as problems name it.
fn path(pointer: &str) -> String {
    let mut path = String::new();
    let parts = pointer.split('/').skip(1).peekable();
    for part in parts {
        match part.parse::<usize>() {
            Ok(index) => write!(path, "[{index}]").unwrap(),
            Err(_) if path.ends_with("providers") => write!(path, "[\"{part}\"]").unwrap(),
            Err(_) => write!(path, "{}{part}", if path.is_empty() { "" } else { "." }).unwrap(),
        }
    }
    path
}

/// Values that are not the default.
fn samples(field: &FieldDescriptor) -> Vec<Value> {
    // Those of which any value would not do.
    let known = match field.full_name() {
        "envoy.config.route.v3.RetryPolicy.retry_on" => Some("5xx".into()),
        "envoy.extensions.filters.http.fault.v3.HTTPFault.abort" => Some(json!({"http_status": 503})),
        "envoy.extensions.filters.http.fault.v3.HTTPFault.delay" => Some(json!({"fixed_delay": "1s"})),
        "envoy.config.route.v3.RouteAction.hash_policy" => Some(json!([{"header": {"header_name": "x"}}])),
        "envoy.config.cluster.v3.Cluster.eds_cluster_config" => Some(json!({"eds_config": {"ads": {}}})),
        "envoy.config.cluster.v3.Cluster.typed_extension_protocol_options" => {
            let options = json!({"explicit_http_config": {"http_protocol_options": {}}});
            let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            Some(json!({name: typed("upstreams.http.v3.HttpProtocolOptions", options)}))
        }
        _ => None,
    };
    if let Some(known) = known {
        return vec![known];
    }
    let one = |kind: Kind| -> Vec<Value> {
        match kind {
            Kind::Bool => vec![true.into()],
            Kind::String => vec!["x".into()],
            Kind::Bytes => vec!["eA==".into()],
            Kind::Float | Kind::Double => vec![json!(1.0)],
            Kind::Enum(kind) => {
                kind.values().filter(|value| value.number() != 0).map(|value| value.name().into()).collect()
            }
            Kind::Message(message) => vec![sample(&message)],
            _ => vec![1.into()],
        }
    };
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return Vec::new() };
        let values = one(entry.map_entry_value_field().kind());
        return values.into_iter().map(|value| json!({"x": value})).collect();
    }
    let values = one(field.kind());
    if field.is_list() { values.into_iter().map(|value| json!([value])).collect() } else { values }
}

fn sample(message: &MessageDescriptor) -> Value {
    match message.full_name() {
        "google.protobuf.BoolValue" => true.into(),
        "google.protobuf.UInt32Value" | "google.protobuf.UInt64Value" | "google.protobuf.DoubleValue" => {
            1.into()
        }
        "google.protobuf.StringValue" => "x".into(),
        "google.protobuf.Duration" => "1s".into(),
        "google.protobuf.Any" => json!({"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}),
        _ => json!({}),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Supported,
    Ignored,
    Refused,
}

/// What the decoder says of `field`, set to `value` where the message is.
fn fate(field: &FieldDescriptor, pointer: &str, value: Value) -> Fate {
    let mut bootstrap = bootstrap();
    let message: &mut Map<String, Value> = bootstrap.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
    if let Some(oneof) = field.containing_oneof() {
        for other in oneof.fields() {
            message.remove(other.name());
        }
    }
    if field.name() == "eds_cluster_config" {
        message.insert("type".to_owned(), "EDS".into());
    }
    message.insert(field.name().to_owned(), value);
    let at = format!("{}.{}", path(pointer), field.name());
    let (before, after) = at.rsplit_once('.').unwrap();
    let oneof = field.containing_oneof().map(|oneof| format!("{before}.{}", oneof.name()));
    // What is looked into is carried, even if what is in it is not.
    let is_own = |path: &str, reason: &str| {
        let item =
            path.strip_prefix(&at).is_some_and(|rest| ["", "[0]", ".typed_config.@type"].contains(&rest));
        item || oneof.as_deref() == Some(path) || (path == before && reason.contains(after))
    };
    match read_bootstrap(&bootstrap) {
        Ok(read) if read.ignored.contains(&at) => Fate::Ignored,
        Ok(_) => Fate::Supported,
        Err(error) => {
            let refused = |problem: &&Problem| {
                problem.reason.contains("not supported") && is_own(&problem.path, &problem.reason)
            };
            if error.problems.iter().any(|problem| refused(&problem)) {
                Fate::Refused
            } else {
                Fate::Supported
            }
        }
    }
}

fn page() -> String {
    let descriptors = include_bytes!("../descriptors/envoy.bin").as_slice();
    let pool = DescriptorPool::decode(descriptors).unwrap();
    let mut page = String::from(
        "# Fields of Envoy's API\n\nWhat `pillion proxy` does with each field of the messages that it reads, in a \
         bootstrap or over ADS. This page is written by a test that sets every field and asks the decoder; it cannot \
         say what is not so. A field that is carried may still have values that are refused, with their place. \
         Messages that are not here belong to fields that are, or are refused whole. What is carried is \
         [held against Envoy](parity.md).\n",
    );
    for (name, at) in MESSAGES {
        let full = format!("envoy.{name}");
        let message = pool.get_message_by_name(&full).unwrap_or_else(|| panic!("no {full}"));
        let pointer = pointer(name, at);
        let mut by_fate: [Vec<String>; 3] = Default::default();
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        for field in fields {
            let fates = samples(&field).into_iter().map(|value| fate(&field, &pointer, value));
            let fate = fates.min().unwrap_or(Fate::Refused);
            by_fate[fate as usize].push(format!("`{}`", field.name()));
        }
        write!(page, "\n## {}\n\n`{full}`\n\n", name.rsplit(".v3.").next().unwrap_or(name)).unwrap();
        for (what, names) in ["Carried", "Accepted, without effect", "Refused"].iter().zip(&by_fate) {
            if !names.is_empty() {
                writeln!(page, "- {what}: {}", names.join(", ")).unwrap();
            }
        }
    }
    page
}

#[test]
fn the_bootstrap_is_good() {
    read_bootstrap(&bootstrap()).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_page_is_what_the_decoder_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/envoy-fields.md");
    let page = page();
    if std::env::var_os("PILLION_WRITE_DOCS").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page, "docs/envoy-fields.md is not fresh: run this test with PILLION_WRITE_DOCS=1");
}
