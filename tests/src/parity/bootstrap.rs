//! From what a fixture says to an Envoy bootstrap: what every fixture has in common is added here.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::fixture::Fixture;

/// Before each line of an access log: the client's address tells which case it belongs to.
const LOG_CLIENT: &str = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%|";
/// A line of the access log, unless the fixture gives its own.
const LOG: &str = "%RESPONSE_CODE% flags=%RESPONSE_FLAGS% \
    details=%RESPONSE_CODE_DETAILS% received=%BYTES_RECEIVED% sent=%BYTES_SENT% %PROTOCOL% \
    \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%\" authority=%REQ(:AUTHORITY)% route=%ROUTE_NAME% \
    cluster=%UPSTREAM_CLUSTER% host=%UPSTREAM_HOST% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT%";

/// Ports by the names fixtures use for them.
pub(crate) type Ports = BTreeMap<String, u16>;

/// HTTP filters by short names: their own name, their type, and that of a route's settings.
const FILTERS: [(&str, &str, &str, &str); 11] = [
    ("rbac", "envoy.filters.http.rbac", "rbac.v3.RBAC", "rbac.v3.RBACPerRoute"),
    ("fault", "envoy.filters.http.fault", "fault.v3.HTTPFault", "fault.v3.HTTPFault"),
    ("cors", "envoy.filters.http.cors", "cors.v3.Cors", "cors.v3.CorsPolicy"),
    ("router", "envoy.filters.http.router", "router.v3.Router", "router.v3.Router"),
    ("buffer", "envoy.filters.http.buffer", "buffer.v3.Buffer", "buffer.v3.BufferPerRoute"),
    (
        "header_mutation",
        "envoy.filters.http.header_mutation",
        "header_mutation.v3.HeaderMutation",
        "header_mutation.v3.HeaderMutationPerRoute",
    ),
    (
        "local_ratelimit",
        "envoy.filters.http.local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        "local_ratelimit.v3.LocalRateLimit",
    ),
    (
        "health_check",
        "envoy.filters.http.health_check",
        "health_check.v3.HealthCheck",
        "health_check.v3.HealthCheck",
    ),
    (
        "jwt_authn",
        "envoy.filters.http.jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        "jwt_authn.v3.PerRouteConfig",
    ),
    ("ext_authz", "envoy.filters.http.ext_authz", "ext_authz.v3.ExtAuthz", "ext_authz.v3.ExtAuthzPerRoute"),
    (
        "grpc_stats",
        "envoy.filters.http.grpc_stats",
        "grpc_stats.v3.FilterConfig",
        "grpc_stats.v3.FilterConfig",
    ),
];

/// The whole bootstrap; access logs go into `folder`.
pub(crate) fn bootstrap(fixture: &Fixture, ports: &Ports, folder: &Path) -> Value {
    let listeners: Vec<Value> =
        fixture.listeners.iter().map(|(name, fields)| listener(name, fields, ports, folder)).collect();
    let clusters: Vec<Value> =
        fixture.clusters.iter().map(|(name, fields)| cluster(name, fields, ports)).collect();
    let mut whole = json!({
        "node": {"id": "one", "cluster": "parity"},
        "admin": {"address": address(ports["admin"])},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    place_ports(&mut whole, ports);
    whole
}

/// Where a listener's access log is.
pub(crate) fn log_file(folder: &Path, listener: &str) -> std::path::PathBuf {
    folder.join(format!("{listener}.log"))
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn listener(name: &str, fields: &Value, ports: &Ports, folder: &Path) -> Value {
    let mut fields = fields.as_object().cloned().unwrap_or_default();
    let line = fields.remove("log");
    let filter = fields.remove("log_filter");
    let line = format!("{LOG_CLIENT}{}\n", line.as_ref().and_then(Value::as_str).unwrap_or(LOG));
    let log = json!([{
        "name": "envoy.access_loggers.file",
        "filter": filter.unwrap_or_default(),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log_file(folder, name),
            "log_format": {"text_format_source": {"inline_string": line}},
        },
    }]);
    let mut whole = Map::new();
    whole.insert("name".to_owned(), name.into());
    whole.insert("address".to_owned(), address(ports[name]));
    if let Some(tcp) = fields.remove("tcp") {
        whole.append(&mut fields);
        let defaults = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name, "access_log": log,
        });
        let filters = json!([{"filters": [
            {"name": "envoy.filters.network.tcp_proxy", "typed_config": merged(defaults, tcp)}
        ]}]);
        whole.insert("filter_chains".to_owned(), filters);
    } else {
        let around = fields.remove("listener").unwrap_or_default();
        let chains = fields.remove("chains").unwrap_or_else(|| json!([{}]));
        let chain = |chain: &Value| {
            let mut chain = chain.as_object().cloned().unwrap_or_default();
            let own = chain.remove("manager").unwrap_or_else(|| json!({}));
            let manager = merged(Value::Object(fields.clone()), own);
            let manager = manager.as_object().cloned().unwrap_or_default();
            let filters = json!([{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": connection_manager(name, manager, &log),
            }]);
            merged(json!({"filters": filters}), Value::Object(chain))
        };
        let chains: Vec<Value> = chains.as_array().into_iter().flatten().map(chain).collect();
        whole.insert("filter_chains".to_owned(), Value::Array(chains));
        if let Value::Object(mut around) = around {
            whole.append(&mut around);
        }
    }
    Value::Object(whole)
}

fn connection_manager(name: &str, mut fields: Map<String, Value>, log: &Value) -> Value {
    let mut hosts = fields.remove("virtual_hosts").unwrap_or_else(|| {
        let routes = fields.remove("routes").unwrap_or_else(|| json!([]));
        json!([{"name": "all", "domains": ["*"], "routes": routes}])
    });
    per_filter(&mut hosts);
    let given = fields.remove("filters").unwrap_or_else(|| json!([]));
    let mut filters: Vec<Value> = given.as_array().into_iter().flatten().map(filter).collect();
    filters.push(filter(&json!({"router": fields.remove("router").unwrap_or_else(|| json!({}))})));
    let routes = merged(
        json!({"name": "routes", "virtual_hosts": hosts}),
        fields.remove("route_config").unwrap_or_default(),
    );
    let defaults = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "generate_request_id": false,
        // Envoy would hold connections that it has closed for a second.
        "delayed_close_timeout": "0s",
        "route_config": routes,
        "http_filters": filters,
        "access_log": log,
    });
    merged(defaults, Value::Object(fields))
}

fn cluster(name: &str, fields: &Value, ports: &Ports) -> Value {
    let mut fields = fields.as_object().cloned().unwrap_or_default();
    let endpoints = fields.remove("endpoints").unwrap_or_else(|| json!([]));
    let endpoint = |origin: &Value| match origin {
        Value::String(origin) => json!({"endpoint": {"address": address(ports[origin.as_str()])}}),
        Value::Object(full) => {
            let mut full = full.clone();
            let origin = full.remove("origin").and_then(|origin| origin.as_str().map(str::to_owned));
            let origin = origin.unwrap_or_else(|| panic!("cluster {name}: an endpoint without origin"));
            merged(json!({"endpoint": {"address": address(ports[origin.as_str()])}}), Value::Object(full))
        }
        other => panic!("cluster {name}: {other} is no endpoint"),
    };
    let endpoints: Vec<Value> = endpoints.as_array().into_iter().flatten().map(endpoint).collect();
    let mut defaults = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    // A type of its own brings its own endpoints.
    if fields.contains_key("cluster_type") {
        defaults = json!({"name": name, "connect_timeout": "1s", "lb_policy": "CLUSTER_PROVIDED"});
    }
    if fields.remove("http2").is_some() {
        defaults["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    merged(defaults, Value::Object(fields))
}

/// `{short name: settings}` as a filter; `disabled` may stand beside it.
fn filter(given: &Value) -> Value {
    let mut given = given.as_object().cloned().unwrap_or_default();
    let disabled = given.remove("disabled").unwrap_or(json!(false));
    let (short, settings) = given.iter().next().expect("one filter");
    let (_, name, kind, _) = find(short);
    json!({"name": name, "typed_config": typed(kind, settings), "disabled": disabled})
}

/// Puts `typed_per_filter_config` in the place of every `per_filter`.
fn per_filter(at: &mut Value) {
    match at {
        Value::Array(items) => items.iter_mut().for_each(per_filter),
        Value::Object(fields) => {
            fields.values_mut().for_each(per_filter);
            if let Some(Value::Object(given)) = fields.remove("per_filter") {
                let full = given.iter().map(|(short, settings)| {
                    let (_, name, _, kind) = find(short);
                    (name.to_owned(), typed(kind, settings))
                });
                fields.insert("typed_per_filter_config".to_owned(), Value::Object(full.collect()));
            }
        }
        _ => {}
    }
}

fn find(short: &str) -> (&str, &str, &str, &str) {
    let known = || FILTERS.map(|(short, ..)| short).join(", ");
    *FILTERS.iter().find(|row| row.0 == short).unwrap_or_else(|| panic!("filter {short}: want {}", known()))
}

fn typed(kind: &str, settings: &Value) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
    merged(json!({"@type": kind}), settings.clone())
}

/// `over` wins; objects are merged, everything else is replaced.
fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (base, Value::Null) => base.take(),
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                let have = base.remove(&key).unwrap_or_default();
                base.insert(key, if have.is_object() { merged(have, value) } else { value });
            }
            Value::Object(std::mem::take(base))
        }
        (_, over) => over,
    }
}

/// Puts ports in the place of `{port:name}`.
fn place_ports(at: &mut Value, ports: &Ports) {
    match at {
        Value::Array(items) => items.iter_mut().for_each(|item| place_ports(item, ports)),
        Value::Object(fields) => fields.values_mut().for_each(|field| place_ports(field, ports)),
        Value::String(text) if text.starts_with("{file:") => {
            let name = text.trim_start_matches("{file:").trim_end_matches('}');
            *text = super::tls::file(name).display().to_string();
        }
        Value::String(text) if text.contains("{port:") => {
            for (name, port) in ports {
                let placeholder = format!("{{port:{name}}}");
                if *text == placeholder {
                    *at = json!(port);
                    return;
                }
                *text = text.replace(&placeholder, &port.to_string());
            }
        }
        _ => {}
    }
}
