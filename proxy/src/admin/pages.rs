//! What each page shows.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use pillion_model::tls::SVID_SECRET;
use pillion_net::tls::PeerCertificate;
use pillion_xds::ads::Encoded;
use pillion_xds::encode::{Dialect, encode_cluster, encode_endpoints, encode_listener, encode_routes};
use pillion_xds::json::to_json;
use serde_json::{Value, json};

use super::{Pages, State, envoy, stats as statistics};

type Page = Response<Full<Bytes>>;

/// Answers one request.
pub(super) fn answer(state: &State, pages: Pages, request: &Request<Incoming>) -> Page {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    match (pages, request.method(), path) {
        (_, &Method::GET | &Method::HEAD, "/metrics") => {
            page("text/plain; version=0.0.4", state.view.scrape.text())
        }
        (_, &Method::GET | &Method::HEAD, "/stats/prometheus") => {
            stats(state, &format!("format=prometheus&{query}"))
        }
        (Pages::All, &Method::GET, "/stats") => stats(state, query),
        (Pages::All, &Method::GET, "/server_info") => page("application/json", envoy::server_info(state)),
        (Pages::All, &Method::GET, "/listeners") => {
            let (content_type, body) = envoy::listeners(state, query);
            page(content_type, body)
        }
        (Pages::All, &Method::POST, "/drain_listeners") => {
            envoy::drain_listeners(state);
            text(StatusCode::OK, "OK\n")
        }
        (Pages::All, &Method::POST, "/healthcheck/fail" | "/healthcheck/ok") => {
            envoy::fail_health_checks(state, path.ends_with("fail"));
            text(StatusCode::OK, "OK\n")
        }
        (_, &Method::GET | &Method::HEAD, "/ready") => ready(state),
        (_, &Method::GET | &Method::HEAD, "/live") => text(StatusCode::OK, "LIVE\n"),
        (Pages::All, &Method::GET, "/") => page("text/plain", INDEX.to_owned()),
        (Pages::All, &Method::GET, "/config_dump") => page("application/json", config_dump(state, query)),
        (Pages::All, &Method::GET, "/clusters") => page("text/plain", clusters(state)),
        (Pages::All, &Method::GET, "/certs") => page("application/json", certs(state)),
        (Pages::All, &Method::GET, "/names") => page("application/json", names(state)),
        (Pages::All, &Method::POST, "/drain") => {
            state.options.drain.cancel();
            text(StatusCode::OK, "draining\n")
        }
        (Pages::All, &Method::POST, "/logging") => logging(state, request.uri().query()),
        (
            Pages::All,
            _,
            "/drain" | "/logging" | "/drain_listeners" | "/healthcheck/fail" | "/healthcheck/ok",
        ) => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
        _ => text(StatusCode::NOT_FOUND, "no such page; see /\n"),
    }
}

/// Whether the answer is held back until the drain is over: `POST /drain?wait=true`.
pub(super) fn waits(pages: Pages, request: &Request<Incoming>) -> bool {
    let uri = request.uri();
    pages == Pages::All
        && request.method() == Method::POST
        && uri.path() == "/drain"
        && uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "wait=true"))
}

const INDEX: &str = "\
/config_dump        the running configuration
/clusters           endpoints with their health and counters
/names              services by name, their virtual addresses, and why one has none
/certs              the proxy's certificate and roots
/ready              200 when ready
/live               200 while the process lives
/drain              POST: stop taking traffic; ?wait=true answers when it is over
/logging?level=     POST: change the log filter
/stats              statistics under Envoy's names: ?filter=, ?usedonly, ?format=json
/stats/prometheus   metrics under both names
/server_info        version, state and age
/listeners          listeners and their addresses; ?format=json
/drain_listeners    POST: accept nothing new
/healthcheck/fail   POST: the health check filter fails, and says so on every answer; /healthcheck/ok ends it
";

fn stats(state: &State, query: &str) -> Page {
    match statistics::Wanted::parse(query) {
        Err(reason) => text(StatusCode::BAD_REQUEST, &format!("{reason}\n")),
        Ok(wanted) if wanted.prometheus => {
            let own = state.view.scrape.text();
            page("text/plain; version=0.0.4", own + &statistics::prometheus(&state.view, &wanted))
        }
        Ok(wanted) => {
            let content_type = if wanted.is_json() { "application/json" } else { "text/plain" };
            page(content_type, statistics::page(&state.view, &wanted))
        }
    }
}

fn text(status: StatusCode, body: &str) -> Page {
    let mut page = page("text/plain", body.to_owned());
    *page.status_mut() = status;
    page
}

fn page(content_type: &'static str, body: String) -> Page {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    page
}

fn ready(state: &State) -> Page {
    // One look: between two the last part may become ready.
    let pending = state.options.readiness.pending();
    if pending.is_empty() {
        return text(StatusCode::OK, "LIVE\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {}\n", pending.join(", ")))
}

fn logging(state: &State, query: Option<&str>) -> Page {
    let level = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("level="));
    match (level, &state.options.set_log_filter) {
        (None, _) => text(StatusCode::BAD_REQUEST, "say which: /logging?level=debug\n"),
        (_, None) => text(StatusCode::NOT_IMPLEMENTED, "this process has a fixed log filter\n"),
        (Some(level), Some(set)) => match set(level) {
            Ok(()) => text(StatusCode::OK, &format!("log filter is now {level}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, &format!("{level}: {error}\n")),
        },
    }
}

/// Every resource in Envoy's JSON form, and whether it runs. Private keys are not shown.
fn config_dump(state: &State, query: &str) -> String {
    let snapshot = state.view.snapshot.load();
    let resources = &snapshot.resources;
    let listeners = resources.listeners.values().map(|listener| {
        let applied = snapshot.listeners.contains_key(&listener.name);
        dumped(encode_listener(listener, Dialect::Pillion), applied)
    });
    let routes = resources.routes.values().map(|routes| {
        dumped(encode_routes(routes, Dialect::Pillion), snapshot.routes.contains_key(&routes.name))
    });
    let clusters = resources.clusters.values().map(|cluster| {
        let applied = snapshot.clusters.contains_key(&cluster.name);
        dumped(encode_cluster(cluster, Dialect::Pillion), applied)
    });
    let endpoints = resources
        .endpoints
        .values()
        .map(|endpoints| dumped(encode_endpoints(endpoints, Dialect::Pillion), true));
    let services = resources.services.iter().map(|(name, service)| {
        json!({
            "name": name,
            "service": service.service.to_string(),
            "index": service.index,
            "ports": service.ports.iter().map(|port| json!({
                "name": port.name,
                "port": port.port,
                "protocol": port.protocol.as_str(),
                "routeConfiguration": port.route_configuration,
                "clusters": port.clusters,
            })).collect::<Vec<_>>(),
        })
    });
    let mut dump = json!({
        "generation": snapshot.generation,
        "listeners": listeners.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "clusters": clusters.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
    });
    if let Some(discovery) = &state.view.discovery {
        let mut configs = discovery.0.configs(query.split('&').any(|pair| pair == "include_eds"));
        redact(&mut configs);
        dump["configs"] = configs;
    }
    serde_json::to_string_pretty(&dump).unwrap_or_default()
}

fn dumped(encoded: Encoded, applied: bool) -> Value {
    let mut resource = to_json(&encoded.body).unwrap_or_else(|error| Value::String(error.to_string()));
    redact(&mut resource);
    json!({"name": encoded.name, "version": encoded.version, "applied": applied, "resource": resource})
}

/// Replaces private keys that stand in the configuration itself.
fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "privateKey" | "private_key" => *value = Value::String("[redacted]".to_owned()),
                    _ => redact(value),
                }
            }
        }
        _ => {}
    }
}

/// In Envoy's text form.
fn clusters(state: &State) -> String {
    let snapshot = state.view.snapshot.load();
    let mut names: Vec<_> = snapshot.clusters.keys().collect();
    names.sort();
    let mut out = String::new();
    for name in names {
        let cluster = &snapshot.clusters[name];
        let limits = &cluster.config.limits;
        let _ = writeln!(out, "{name}::default_priority::max_connections::{}", limits.connections_max);
        let _ = writeln!(out, "{name}::default_priority::max_requests::{}", limits.requests_max);
        for host in &cluster.hosts().hosts {
            let (endpoint, stats) = (&host.endpoint, &host.endpoint.stats);
            let at = format!("{name}::{}", endpoint.address);
            let flags =
                [(host.fails_check(), "/failed_active_hc"), (endpoint.is_ejected(), "/failed_outlier_check")];
            let flags: String = flags.into_iter().filter_map(|(set, flag)| set.then_some(flag)).collect();
            let health = if flags.is_empty() { host.health.as_str().to_owned() } else { flags };
            for (stat, value) in [
                ("cx_active", u64::from(stats.cx_active.load(Relaxed))),
                ("cx_connect_fail", stats.cx_connect_fail.load(Relaxed)),
                ("cx_total", stats.cx_total.load(Relaxed)),
                ("rq_active", u64::from(endpoint.active())),
                ("rq_error", stats.rq_error.load(Relaxed)),
                ("rq_success", stats.rq_success.load(Relaxed)),
                ("rq_timeout", stats.rq_timeout.load(Relaxed)),
                ("rq_total", stats.rq_total.load(Relaxed)),
                ("weight", u64::from(host.weight)),
                ("priority", u64::from(host.priority)),
            ] {
                let _ = writeln!(out, "{at}::{stat}::{value}");
            }
            let _ = writeln!(out, "{at}::hostname::{}", host.hostname);
            let _ = writeln!(out, "{at}::health_flags::{health}");
            let _ = writeln!(out, "{at}::zone::{}", host.locality.zone);
        }
    }
    out
}

fn names(state: &State) -> String {
    let names = state.options.names.get().map_or_else(|| json!([]), |show| show());
    serde_json::to_string_pretty(&json!({ "services": names })).unwrap_or_default()
}

fn certs(state: &State) -> String {
    let secrets = state.options.secrets.as_ref().and_then(|secrets| secrets());
    let own = secrets.and_then(|secrets| secrets.certificate(SVID_SECRET));
    let shown = own.and_then(|own| PeerCertificate::parse(&own.cert).ok());
    let dump = match shown {
        None => json!({"certificates": []}),
        Some(certificate) => json!({"certificates": [{
            "subjectAltNames": certificate.uri_sans.iter().chain(&certificate.dns_sans).collect::<Vec<_>>(),
            "sha256": certificate.sha256_hex,
            "secondsUntilExpiration": certificate
                .not_after
                .duration_since(SystemTime::now())
                .map_or(0, |left| left.as_secs()),
        }]}),
    };
    serde_json::to_string_pretty(&dump).unwrap_or_default()
}
