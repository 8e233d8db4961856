//! The fields of a registration in the API's JSON form.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pillion_model::health::Reported;
use pillion_model::instance::{InstancePort, Protocol, WEIGHT_DEFAULT};
use pillion_model::name::{check_label, is_vip};
use pillion_xds::json::kind;
use serde_json::{Map, Value};

use super::{FieldProblem, NEVER, PORT_NAME_DEFAULT, parse_duration, parse_reported};
use crate::lease::{TTL_DEFAULT, TTL_MAX, TTL_MIN, TTL_NEVER};

/// Ports of one instance at most.
const PORTS_MAX: usize = 32;
/// Labels of one instance at most.
const LABELS_MAX: usize = 64;
/// Bytes of a label's or metadata's name, and of a label's value, at most.
const LABEL_BYTES_MAX: usize = 253;
/// Bytes of all metadata of one instance at most.
const METADATA_BYTES_MAX: usize = 4096;

/// Reads field by field, and notes what is wrong.
pub(super) struct Reader {
    pub(super) problems: Vec<FieldProblem>,
}

impl Reader {
    fn refuse(&mut self, field: impl Into<String>, got: impl std::fmt::Display, want: &str) {
        self.problems.push(FieldProblem { field: field.into(), detail: format!("got {got}, want {want}") });
    }

    pub(super) fn known(&mut self, map: &Map<String, Value>, at: &str, known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            self.problems.push(FieldProblem {
                field: format!("{at}{key}"),
                detail: format!("is not a field; the fields are {}", known.join(", ")),
            });
        }
    }

    pub(super) fn address(&mut self, body: &Map<String, Value>) -> Option<IpAddr> {
        const WANT: &str = "an IP address that callers can dial, such as 10.0.0.5";
        let Some(value) = present(body, "address") else {
            self.refuse("address", "nothing", WANT);
            return None;
        };
        let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let usable =
            |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast() && *ip != std::net::Ipv4Addr::BROADCAST;
        match address.filter(usable) {
            Some(address) if is_vip(address) => {
                self.refuse(
                    "address",
                    value,
                    "one outside 127.64.0.0/10, which sidecars use for virtual addresses",
                );
                None
            }
            Some(address) => Some(address.to_canonical()),
            None => {
                self.refuse("address", value, WANT);
                None
            }
        }
    }

    pub(super) fn ports(&mut self, body: &Map<String, Value>) -> BTreeMap<String, InstancePort> {
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

    pub(super) fn port(&mut self, map: &Map<String, Value>, at: &str, field: &str) -> Option<u16> {
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

    pub(super) fn labels(&mut self, body: &Map<String, Value>) -> BTreeMap<String, String> {
        let labels = self.texts(body, "labels");
        if labels.len() > LABELS_MAX {
            self.refuse("labels", format_args!("{} labels", labels.len()), "at most 64");
        }
        for (name, value) in labels.iter().filter(|(_, value)| value.len() > LABEL_BYTES_MAX) {
            self.refuse(format!("labels.{name}"), format_args!("{} bytes", value.len()), "at most 253 bytes");
        }
        labels
    }

    pub(super) fn metadata(&mut self, body: &Map<String, Value>) -> BTreeMap<String, String> {
        let metadata = self.texts(body, "metadata");
        let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > METADATA_BYTES_MAX {
            self.refuse("metadata", format_args!("{bytes} bytes"), "at most 4096 bytes in all");
        }
        metadata
    }

    pub(super) fn weight(&mut self, body: &Map<String, Value>) -> u32 {
        let Some(value) = present(body, "weight") else { return WEIGHT_DEFAULT };
        value.as_u64().and_then(|n| u16::try_from(n).ok()).map_or_else(
            || {
                self.refuse("weight", value, "0 to 65535 (default 100, 0 takes no traffic)");
                WEIGHT_DEFAULT
            },
            u32::from,
        )
    }

    pub(super) fn zone(&mut self, body: &Map<String, Value>) -> String {
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

    pub(super) fn ttl(&mut self, body: &Map<String, Value>) -> Duration {
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

    pub(super) fn generation(&mut self, body: &Map<String, Value>) -> Option<u64> {
        let value = present(body, "generation")?;
        let generation = value.as_u64().filter(|&n| n != 0 && n < u64::MAX / 2);
        if generation.is_none() {
            self.refuse("generation", value, "a number from 1 to 2^63-2 that rises with every start");
        }
        generation
    }

    pub(super) fn health(&mut self, body: &Map<String, Value>) -> Option<Reported> {
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
