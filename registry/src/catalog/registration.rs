//! What an instance says about itself when it registers, checked field by field.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pillion_model::health::{Probe, Reported};
use pillion_model::instance::{InstancePort, Protocol, WEIGHT_DEFAULT};
use pillion_model::name::{InstanceId, ServiceName, check_label};
use serde_json::{Map, Value};

use crate::lease::{TTL_DEFAULT, TTL_MAX, TTL_MIN, TTL_NEVER};

/// Ports of one instance at most.
const PORTS_MAX: usize = 32;
/// Labels of one instance at most.
const LABELS_MAX: usize = 64;
/// Bytes of a label's or metadata's name, and of a label's value, at most.
const LABEL_BYTES_MAX: usize = 253;
/// Bytes of all metadata of one instance at most.
const METADATA_BYTES_MAX: usize = 4096;
/// The name of the port in the short form `{"address": …, "port": …}`.
pub const PORT_NAME_DEFAULT: &str = "http";
/// The lease of an instance that stays until it is deregistered.
const NEVER: &str = "never";
/// The fields of a registration.
pub const FIELDS: [&str; 12] = [
    "address",
    "port",
    "ports",
    "inboundPort",
    "metricsPort",
    "labels",
    "metadata",
    "weight",
    "zone",
    "health",
    "ttl",
    "generation",
];

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct FieldProblem {
    /// Path of the field, such as `ports.http.port`.
    pub field: String,
    /// What was found and what would be right.
    pub detail: String,
}

/// A registration whose every field is valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The service.
    pub service: ServiceName,
    /// The instance within it.
    pub id: InstanceId,
    /// Where it is reached.
    pub address: IpAddr,
    /// Ports by name, at least one.
    pub ports: BTreeMap<String, InstancePort>,
    /// The sidecar's inbound port.
    pub inbound_port: Option<u16>,
    /// Where `/metrics` is.
    pub metrics_port: Option<u16>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Free text.
    pub metadata: BTreeMap<String, String>,
    /// Share of traffic.
    pub weight: u32,
    /// Availability zone, or empty.
    pub zone: String,
    /// The lease asked for.
    pub ttl: Duration,
    /// `None`: the registry assigns one.
    pub generation: Option<u64>,
    /// What it says of its health; `None`: nothing.
    pub reported: Option<Reported>,
    /// What its sidecar found; only registration streams say so.
    pub probe: Option<Probe>,
}

impl Registration {
    /// Reads the JSON form of the API.
    ///
    /// # Errors
    ///
    /// Every field that is wrong, each with what was found and what would be right.
    pub fn parse(service: ServiceName, id: InstanceId, body: &Value) -> Result<Self, Vec<FieldProblem>> {
        let Value::Object(body) = body else {
            return Err(vec![FieldProblem {
                field: String::new(),
                detail: format!("got {}, want an object with at least address and port", kind(body)),
            }]);
        };
        let mut read = Reader { problems: Vec::new() };
        read.known(body, "", &FIELDS);
        let address = read.address(body);
        let ports = read.ports(body);
        let registration = Self {
            service,
            id,
            address: address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
            ports,
            inbound_port: read.port(body, "", "inboundPort"),
            metrics_port: read.port(body, "", "metricsPort"),
            labels: read.labels(body),
            metadata: read.metadata(body),
            weight: read.weight(body),
            zone: read.zone(body),
            ttl: read.ttl(body),
            generation: read.generation(body),
            reported: read.health(body),
            probe: None,
        };
        if read.problems.is_empty() { Ok(registration) } else { Err(read.problems) }
    }
}

/// Reads what an instance reports of its health.
pub fn parse_reported(word: &str) -> Option<Reported> {
    Some(match word {
        "ready" => Reported::Ready,
        "starting" => Reported::Starting,
        "notReady" => Reported::NotReady,
        "draining" => Reported::Draining,
        _ => return None,
    })
}

/// The word for what an instance reports of its health.
pub fn reported_word(reported: Reported) -> &'static str {
    match reported {
        Reported::Ready => "ready",
        Reported::Starting => "starting",
        Reported::NotReady => "notReady",
        Reported::Draining => "draining",
    }
}

/// Reads a duration such as `500ms`, `30s`, `5m` or `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit).map(Duration::from_millis)
}

/// Writes a lease or a beat interval: a duration as [`parse_duration`] reads it, or `never`.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        _ if duration == TTL_NEVER => NEVER.to_owned(),
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

struct Reader {
    problems: Vec<FieldProblem>,
}

impl Reader {
    fn refuse(&mut self, field: impl Into<String>, got: impl std::fmt::Display, want: &str) {
        self.problems.push(FieldProblem { field: field.into(), detail: format!("got {got}, want {want}") });
    }

    fn known(&mut self, map: &Map<String, Value>, at: &str, known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            self.problems.push(FieldProblem {
                field: format!("{at}{key}"),
                detail: format!("is not a field; the fields are {}", known.join(", ")),
            });
        }
    }

    fn address(&mut self, body: &Map<String, Value>) -> Option<IpAddr> {
        const WANT: &str = "an IP address that callers can dial, such as 10.0.0.5";
        let Some(value) = present(body, "address") else {
            self.refuse("address", "nothing", WANT);
            return None;
        };
        let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let usable =
            |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast() && *ip != std::net::Ipv4Addr::BROADCAST;
        match address.filter(usable) {
            Some(address) => Some(address.to_canonical()),
            None => {
                self.refuse("address", value, WANT);
                None
            }
        }
    }

    fn ports(&mut self, body: &Map<String, Value>) -> BTreeMap<String, InstancePort> {
        const WANT: &str = "an object such as {\"http\": {\"port\": 8080, \"protocol\": \"http\"}}";
        let short = present(body, "port").is_some();
        let mut ports = BTreeMap::new();
        match present(body, "ports") {
            Some(_) if short => self.refuse("port", "both port and ports", "one of them"),
            Some(Value::Object(map)) if !map.is_empty() && map.len() <= PORTS_MAX => {
                for (name, value) in map {
                    if let Err(error) = check_label(name) {
                        self.problems.push(FieldProblem {
                            field: format!("ports.{name}"),
                            detail: format!("the name {error}"),
                        });
                    } else if let Some(port) = self.named_port(name, value) {
                        ports.insert(name.clone(), port);
                    }
                }
            }
            Some(Value::Object(map)) => {
                self.refuse("ports", format_args!("{} ports", map.len()), "1 to 32");
            }
            Some(other) => self.refuse("ports", kind(other), WANT),
            None if short => {
                if let Some(port) = self.port(body, "", "port") {
                    let port = InstancePort { port, protocol: Protocol::Http, app_address: None };
                    ports.insert(PORT_NAME_DEFAULT.to_owned(), port);
                }
            }
            None => self.refuse("ports", "nothing", WANT),
        }
        ports
    }

    fn named_port(&mut self, name: &str, value: &Value) -> Option<InstancePort> {
        let at = format!("ports.{name}");
        let Value::Object(map) = value else {
            self.refuse(at, kind(value), "an object with port and protocol");
            return None;
        };
        let at = format!("{at}.");
        self.known(map, &at, &["port", "protocol", "appAddress"]);
        let port = self.port(map, &at, "port");
        if present(map, "port").is_none() {
            self.refuse(format!("{at}port"), "nothing", "1 to 65535");
        }
        let protocol = match present(map, "protocol") {
            None => Protocol::Http,
            Some(value) => value.as_str().and_then(Protocol::parse).unwrap_or_else(|| {
                self.refuse(format!("{at}protocol"), value, "http, http2, grpc or tcp");
                Protocol::Http
            }),
        };
        let app_address = present(map, "appAddress").and_then(|value| {
            let address = value.as_str().and_then(|text| text.parse::<SocketAddr>().ok());
            if address.is_none_or(|address| address.port() == 0) {
                self.refuse(format!("{at}appAddress"), value, "address and port, such as 127.0.0.1:8080");
            }
            address
        });
        Some(InstancePort { port: port?, protocol, app_address })
    }

    fn port(&mut self, map: &Map<String, Value>, at: &str, field: &str) -> Option<u16> {
        let value = present(map, field)?;
        let port = value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|&n| n != 0);
        if port.is_none() {
            self.refuse(format!("{at}{field}"), value, "a port from 1 to 65535");
        }
        port
    }

    fn texts(&mut self, body: &Map<String, Value>, field: &str) -> BTreeMap<String, String> {
        const WANT: &str = "an object of texts, such as {\"version\": \"1\"}";
        let mut texts = BTreeMap::new();
        match present(body, field) {
            None => {}
            Some(Value::Object(map)) => {
                for (name, value) in map {
                    match value.as_str() {
                        Some(_) if name.is_empty() || name.len() > LABEL_BYTES_MAX => {
                            self.refuse(
                                field,
                                format_args!("a name of {} bytes", name.len()),
                                "1 to 253 bytes",
                            );
                        }
                        // Both are printed in tables, logs and DNS: one line each.
                        Some(_) if name.contains(breaks_line) => {
                            let got = format!("the name {name:?}");
                            self.refuse(field, got, "no control characters and line breaks");
                        }
                        Some(text) if text.contains(breaks_line) => {
                            let want = "no control characters and line breaks";
                            self.refuse(format!("{field}.{name}"), format_args!("{text:?}"), want);
                        }
                        Some(text) => {
                            texts.insert(name.clone(), text.to_owned());
                        }
                        None => self.refuse(format!("{field}.{name}"), value, "a text"),
                    }
                }
            }
            Some(other) => self.refuse(field, kind(other), WANT),
        }
        texts
    }

    fn labels(&mut self, body: &Map<String, Value>) -> BTreeMap<String, String> {
        let labels = self.texts(body, "labels");
        if labels.len() > LABELS_MAX {
            self.refuse("labels", format_args!("{} labels", labels.len()), "at most 64");
        }
        for (name, value) in labels.iter().filter(|(_, value)| value.len() > LABEL_BYTES_MAX) {
            self.refuse(format!("labels.{name}"), format_args!("{} bytes", value.len()), "at most 253 bytes");
        }
        labels
    }

    fn metadata(&mut self, body: &Map<String, Value>) -> BTreeMap<String, String> {
        let metadata = self.texts(body, "metadata");
        let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > METADATA_BYTES_MAX {
            self.refuse("metadata", format_args!("{bytes} bytes"), "at most 4096 bytes in all");
        }
        metadata
    }

    fn weight(&mut self, body: &Map<String, Value>) -> u32 {
        let Some(value) = present(body, "weight") else { return WEIGHT_DEFAULT };
        value.as_u64().and_then(|n| u16::try_from(n).ok()).map_or_else(
            || {
                self.refuse("weight", value, "0 to 65535 (default 100, 0 takes no traffic)");
                WEIGHT_DEFAULT
            },
            u32::from,
        )
    }

    fn zone(&mut self, body: &Map<String, Value>) -> String {
        let Some(value) = present(body, "zone") else { return String::new() };
        let fits = |text: &&str| text.len() <= 63 && text.chars().all(|c| c.is_ascii_graphic());
        match value.as_str().filter(fits) {
            Some(zone) => zone.to_owned(),
            None => {
                self.refuse("zone", value, "a name of at most 63 characters, such as eu-west-1a");
                String::new()
            }
        }
    }

    fn ttl(&mut self, body: &Map<String, Value>) -> Duration {
        let Some(value) = present(body, "ttl") else { return TTL_DEFAULT };
        if value.as_str() == Some(NEVER) {
            return TTL_NEVER;
        }
        let ttl = value.as_str().and_then(parse_duration);
        match ttl.filter(|ttl| (TTL_MIN..=TTL_MAX).contains(ttl)) {
            Some(ttl) => ttl,
            None => {
                self.refuse("ttl", value, "a duration from 2s to 24h, such as 30s, or never");
                TTL_DEFAULT
            }
        }
    }

    fn generation(&mut self, body: &Map<String, Value>) -> Option<u64> {
        let value = present(body, "generation")?;
        let generation = value.as_u64().filter(|&n| n != 0 && n < u64::MAX / 2);
        if generation.is_none() {
            self.refuse("generation", value, "a positive number that rises with every start");
        }
        generation
    }

    fn health(&mut self, body: &Map<String, Value>) -> Option<Reported> {
        let value = present(body, "health")?;
        let reported = value.as_str().and_then(parse_reported);
        if reported.is_none() {
            self.refuse("health", value, "ready, starting, notReady or draining");
        }
        reported
    }
}

/// A field that is there and not null.
fn present<'a>(map: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    map.get(field).filter(|value| !value.is_null())
}

/// Whether a character is a control character, or ends a line.
fn breaks_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<Registration, Vec<FieldProblem>> {
        let service = ServiceName::new("shop", "orders").expect("valid");
        Registration::parse(service, InstanceId::parse("a").expect("valid"), body)
    }

    #[test]
    fn the_short_form_means_one_port_named_http() {
        let registration = parse(&json!({"address": "10.0.0.5", "port": 8080})).expect("valid");
        let port = InstancePort { port: 8080, protocol: Protocol::Http, app_address: None };
        assert_eq!(registration.ports, BTreeMap::from([("http".to_owned(), port)]));
        assert_eq!((registration.weight, registration.ttl), (WEIGHT_DEFAULT, TTL_DEFAULT));
        assert_eq!(registration.generation, None);
    }

    #[test]
    fn each_wrong_field_is_named_with_what_was_got_and_what_is_right() {
        for (body, field, got) in [
            (json!({"port": 1}), "address", "nothing"),
            (json!({"address": "orders.local", "port": 1}), "address", "\"orders.local\""),
            (json!({"address": "0.0.0.0", "port": 1}), "address", "\"0.0.0.0\""),
            (json!({"address": "10.0.0.256", "port": 1}), "address", "\"10.0.0.256\""),
            (json!({"address": "::1"}), "ports", "nothing"),
            (json!({"address": "::1", "port": 0}), "port", "0"),
            (json!({"address": "::1", "port": 65536}), "port", "65536"),
            (json!({"address": "::1", "port": "80"}), "port", "\"80\""),
            (json!({"address": "::1", "ports": {}}), "ports", "0 ports"),
            (json!({"address": "::1", "ports": {"a": {}}}), "ports.a.port", "nothing"),
            (json!({"address": "::1", "ports": {"A": {"port": 1}}}), "ports.A", "'A' at position 0"),
            (
                json!({"address": "::1", "ports": {"a": {"port": 1, "protocol": "udp"}}}),
                "ports.a.protocol",
                "\"udp\"",
            ),
            (
                json!({"address": "::1", "ports": {"a": {"port": 1, "appAddress": "8080"}}}),
                "ports.a.appAddress",
                "\"8080\"",
            ),
            (json!({"address": "::1", "port": 1, "ttl": "1s"}), "ttl", "\"1s\""),
            (json!({"address": "::1", "port": 1, "ttl": "25h"}), "ttl", "\"25h\""),
            (json!({"address": "::1", "port": 1, "ttl": 30}), "ttl", "30"),
            (json!({"address": "::1", "port": 1, "weight": -1}), "weight", "-1"),
            (json!({"address": "::1", "port": 1, "health": "fine"}), "health", "\"fine\""),
            (json!({"address": "::1", "port": 1, "generation": 0}), "generation", "0"),
            (json!({"address": "::1", "port": 1, "labels": {"v": 1}}), "labels.v", "1"),
            (json!({"address": "::1", "port": 1, "labels": {"v": "1\n2"}}), "labels.v", "\"1\\n2\""),
            (json!({"address": "::1", "port": 1, "labels": {"v\u{7}": "1"}}), "labels", "\"v\\u{7}\""),
            (json!({"address": "::1", "port": 1, "metadata": {"v": "\u{1b}[2J"}}), "metadata.v", "\\u{1b}"),
            (
                json!({"address": "::1", "port": 1, "metadata": {"v": "a\u{2028}b"}}),
                "metadata.v",
                "\\u{2028}",
            ),
            (json!({"address": "::1", "port": 1, "adress": "x"}), "adress", "is not a field"),
            (json!([]), "", "a list"),
        ] {
            let problems = parse(&body).expect_err(&body.to_string());
            assert_eq!(problems.len(), 1, "{body}: {problems:?}");
            assert_eq!(problems[0].field, field, "{body}");
            assert!(problems[0].detail.contains(got), "{body}: {}", problems[0].detail);
        }
    }

    #[test]
    fn all_wrong_fields_are_told_at_once() {
        let problems = parse(&json!({"address": 1, "port": 0, "ttl": "x"})).expect_err("wrong");
        let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["address", "port", "ttl"]);
    }

    #[test]
    fn a_lease_that_never_ends_reads_back_what_it_prints() {
        let parsed = parse(&json!({"address": "::1", "port": 1, "ttl": "never"})).expect("valid");
        assert_eq!(parsed.ttl, TTL_NEVER);
        assert_eq!(duration_text(parsed.ttl), "never");
        assert_eq!(duration_text(crate::lease::beat_interval(parsed.ttl)), "never");
    }

    #[test]
    fn durations_read_back_what_they_print() {
        for text in ["500ms", "2s", "90s", "5m", "24h", "0s"] {
            assert_eq!(duration_text(parse_duration(text).expect(text)), text);
        }
        for bad in ["", "s", "1", "1.5s", "-1s", "1d", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
