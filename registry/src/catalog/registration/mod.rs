//! What an instance says about itself when it registers, checked field by field.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use pillion_config::DurationText;
use pillion_model::health::{Probe, Reported};
use pillion_model::instance::InstancePort;
use pillion_model::name::{InstanceId, ServiceName};
use pillion_xds::json::kind;
use serde_json::Value;

use crate::lease::TTL_NEVER;

mod reader;

use reader::Reader;

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

/// Reads a duration such as `500ms`, `30s` or `1h30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    DurationText::parse(text).map(|duration| duration.0)
}

/// Writes a lease or a beat interval: `never`, or a whole number of one unit, for readers that know no
/// more than that.
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

#[cfg(test)]
mod tests {
    use pillion_model::instance::{Protocol, WEIGHT_DEFAULT};
    use serde_json::json;

    use super::*;
    use crate::lease::TTL_DEFAULT;

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
        for bad in ["", "s", "1", "-1s", "1s1m", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
