//! What the API takes and gives, as JSON.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use pillion_model::health::{Administrative, Health, Lease, Probe};
use pillion_model::instance::{Instance, InstancePort};
use schemars::JsonSchema;
use serde::Serialize;

use crate::catalog::{duration_text, reported_word};

/// A registration: what an instance says about itself. For a quick start `{"address": "10.0.0.5",
/// "port": 8080}` means one port named `http`.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct InstanceDocument {
    /// IP address that callers dial.
    pub address: String,
    /// Short for `ports: {http: {port: …}}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Ports by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub ports: BTreeMap<String, PortDocument>,
    /// The sidecar's mutual-TLS port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_port: Option<u32>,
    /// Where `/metrics` is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_port: Option<u32>,
    /// Labels: subsets select by them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub labels: BTreeMap<String, String>,
    /// Free text for people.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub metadata: BTreeMap<String, String>,
    /// Share of traffic, 0 to 65535. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Availability zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `ready` (default), `starting`, `notReady` or `draining`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// How long the registration lives without a heartbeat: `2s` to `24h`, or `never`: until it is
    /// deregistered. Default `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Rises with every start; absent: the registry assigns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A port in a registration.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct PortDocument {
    /// What callers without a sidecar dial.
    pub port: u32,
    /// `http` (default), `http2`, `grpc` or `tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Where the sidecar reaches the application. Default `127.0.0.1:<port>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_address: Option<String>,
}

/// An instance as it is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Its service's namespace.
    pub namespace: String,
    /// Its service.
    pub service: String,
    /// Its id within the service.
    pub id: String,
    /// IP address.
    pub address: IpAddr,
    /// Ports by name.
    pub ports: BTreeMap<String, PortView>,
    /// The sidecar's mutual-TLS port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_port: Option<u16>,
    /// Where `/metrics` is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_port: Option<u16>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub labels: BTreeMap<String, String>,
    /// Free text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub metadata: BTreeMap<String, String>,
    /// Share of traffic.
    pub weight: u32,
    /// Availability zone.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    pub zone: String,
    /// How long it lives without a heartbeat, or `never`: until it is deregistered.
    pub ttl: String,
    /// Rises with every start.
    pub generation: u64,
    /// `serving`, `warning`, `draining`, `stale` or `down`.
    pub health: &'static str,
    /// What `health` is combined from.
    pub inputs: InputsView,
}

/// A port of an instance or of a service.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// The port.
    pub port: u16,
    /// `http`, `http2`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// Where the sidecar reaches the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub app_address: Option<SocketAddr>,
}

/// The four inputs of an instance's health.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InputsView {
    /// `heard`, `late`, `silent`, or `protected`: silent, but held by the brake on mass expiry.
    pub lease: &'static str,
    /// What it says of itself.
    pub reported: &'static str,
    /// What its sidecar found: `unknown`, `passing` or `failing`.
    pub probe: &'static str,
    /// Taken out of service by an operator.
    pub maintenance: bool,
    /// Comes and goes, so what it says of itself counts only once it is steady. Not told to watchers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub held_back: bool,
}

/// A service: what is known of it, and how many instances it has.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `resource` if a Service resource describes it, else `registered`.
    pub origin: &'static str,
    /// The lower 16 bits of its virtual address in every sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u16>,
    /// Ports by name.
    pub ports: BTreeMap<String, PortView>,
    /// Instances by health; `total` counts all.
    pub instances: BTreeMap<&'static str, usize>,
    /// Revision of the last change to it or to its instances.
    pub revision: u64,
}

/// Services, and the position to watch from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServiceList {
    /// `<epoch>.<revision>`.
    pub token: String,
    /// In the order of names.
    pub services: Vec<ServiceView>,
}

/// Instances, and the position to watch from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct InstanceList {
    /// `<epoch>.<revision>`.
    pub token: String,
    /// In the order of ids.
    pub instances: Vec<InstanceView>,
}

/// The answer to a registration or a heartbeat.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BeatView {
    /// The generation in force.
    pub generation: u64,
    /// How often to send a heartbeat, or `never`.
    pub beat_interval: String,
    /// `serving`, `warning`, `draining`, `stale` or `down`.
    pub health: &'static str,
}

impl From<&Instance> for InstanceView {
    fn from(instance: &Instance) -> Self {
        Self {
            namespace: instance.service.namespace().to_owned(),
            service: instance.service.service().to_owned(),
            id: instance.id.to_string(),
            address: instance.address,
            ports: instance.ports.iter().map(|(name, port)| (name.clone(), port.into())).collect(),
            inbound_port: instance.inbound_port,
            metrics_port: instance.metrics_port,
            labels: BTreeMap::clone(&instance.labels),
            metadata: BTreeMap::clone(&instance.metadata),
            weight: instance.weight,
            zone: instance.zone.clone(),
            ttl: duration_text(instance.ttl),
            generation: instance.generation,
            health: Health::combine(instance.health).as_str(),
            inputs: InputsView {
                lease: match instance.health.lease {
                    Lease::Heard => "heard",
                    Lease::Late => "late",
                    Lease::Silent => "silent",
                    Lease::Protected => "protected",
                },
                reported: reported_word(instance.health.reported),
                probe: match instance.health.probe {
                    Probe::Unknown => "unknown",
                    Probe::Passing => "passing",
                    Probe::Failing => "failing",
                },
                maintenance: instance.health.administrative == Administrative::Maintenance,
                held_back: false,
            },
        }
    }
}

impl From<&InstancePort> for PortView {
    fn from(port: &InstancePort) -> Self {
        Self { port: port.port, protocol: port.protocol.as_str(), app_address: port.app_address }
    }
}

impl From<&Instance> for BeatView {
    fn from(instance: &Instance) -> Self {
        Self {
            generation: instance.generation,
            beat_interval: duration_text(crate::lease::beat_interval(instance.ttl)),
            health: Health::combine(instance.health).as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_of_a_registration_names_the_fields_that_are_read() {
        let schema = schemars::schema_for!(InstanceDocument).to_value();
        let properties = schema["properties"].as_object().expect("an object");
        let mut documented: Vec<_> = properties.keys().map(String::as_str).collect();
        let mut read = crate::catalog::FIELDS.to_vec();
        documented.sort_unstable();
        read.sort_unstable();
        assert_eq!(documented, read);
    }
}
