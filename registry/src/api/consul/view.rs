//! Instances as Consul writes them.

use std::collections::{BTreeMap, BTreeSet};

use pillion_model::health::Health;
use pillion_model::instance::Instance;
use schemars::JsonSchema;
use serde::Serialize;

use super::DATACENTER;

/// What a client asks for the name of its datacentre.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct Agent {
    config: AgentConfig,
    member: BTreeMap<String, String>,
    meta: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
struct AgentConfig {
    datacenter: &'static str,
    node_name: &'static str,
    server: bool,
    version: &'static str,
}

impl Agent {
    pub(super) fn new() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let config = AgentConfig { datacenter: DATACENTER, node_name: "pillion", server: true, version };
        Self { config, member: BTreeMap::new(), meta: BTreeMap::new() }
    }
}

/// Services with the tags of their instances.
#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct ServiceTags(pub(super) BTreeMap<String, BTreeSet<String>>);

/// The instances of one service.
#[derive(Serialize, JsonSchema)]
pub(in crate::api) struct HealthEntries(pub(super) Vec<HealthEntry>);

/// One instance.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub(in crate::api) struct HealthEntry {
    node: NodeEntry,
    service: ServiceEntry,
    checks: [CheckEntry; 1],
}

/// Consul's machine; here each instance is on one of its own, as it brings its own address.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
struct NodeEntry {
    node: String,
    address: String,
    datacenter: &'static str,
    tagged_addresses: BTreeMap<&'static str, String>,
    meta: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
struct ServiceEntry {
    #[serde(rename = "ID")]
    id: String,
    /// The name as it was asked for.
    service: String,
    /// Labels, as `name=value`.
    tags: Vec<String>,
    address: String,
    /// The port named `http`, else the first by name; every port is in the metadata.
    port: u16,
    /// What the instance registered as metadata and labels, and `pillion_…`.
    meta: BTreeMap<String, String>,
    weights: Weights,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
struct CheckEntry {
    node: String,
    #[serde(rename = "CheckID")]
    check_id: &'static str,
    name: &'static str,
    /// `passing`, `warning` or `critical`.
    status: &'static str,
    /// Our own word for it.
    output: &'static str,
    #[serde(rename = "ServiceID")]
    service_id: String,
    service_name: String,
}

impl HealthEntry {
    pub(super) fn new(instance: &Instance, called: &str) -> Self {
        let (id, address) = (instance.id.to_string(), instance.address.to_string());
        let health = Health::combine(instance.health);
        let port = instance.ports.get("http").or_else(|| instance.ports.values().next());
        let check = CheckEntry {
            node: id.clone(),
            check_id: "pillion",
            name: "health, combined from lease, report, probe and maintenance",
            status: status(health),
            output: health.as_str(),
            service_id: id.clone(),
            service_name: called.to_owned(),
        };
        Self {
            node: NodeEntry {
                node: id.clone(),
                address: address.clone(),
                datacenter: DATACENTER,
                tagged_addresses: BTreeMap::from([("lan", address.clone())]),
                meta: BTreeMap::new(),
            },
            service: ServiceEntry {
                id,
                service: called.to_owned(),
                tags: tags(instance).collect(),
                address,
                port: port.map_or(0, |port| port.port),
                meta: meta(instance, health),
                weights: Weights { passing: instance.weight, warning: instance.weight },
            },
            checks: [check],
        }
    }

    pub(super) fn is_passing(&self) -> bool {
        self.checks.iter().all(|check| check.status == PASSING)
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.service.tags.iter().any(|have| have == tag)
    }
}

/// An instance's labels, as tags.
pub(super) fn tags(instance: &Instance) -> impl Iterator<Item = String> {
    instance.labels.iter().map(|(name, value)| format!("{name}={value}"))
}

fn status(health: Health) -> &'static str {
    match health {
        Health::Serving => PASSING,
        Health::Warning | Health::Stale => "warning",
        Health::Draining | Health::Down => "critical",
    }
}

fn meta(instance: &Instance, health: Health) -> BTreeMap<String, String> {
    let mut meta = BTreeMap::clone(&instance.metadata);
    meta.extend(BTreeMap::clone(&instance.labels));
    let mut add = |name: &str, value: String| meta.insert(format!("pillion_{name}"), value);
    add("namespace", instance.service.namespace().to_owned());
    add("service", instance.service.service().to_owned());
    add("zone", instance.zone.clone());
    add("health", health.as_str().to_owned());
    for (name, port) in instance.ports.iter() {
        add(&format!("port_{name}"), port.port.to_string());
    }
    for (name, port) in [("inbound_port", instance.inbound_port), ("metrics_port", instance.metrics_port)] {
        if let Some(port) = port {
            add(name, port.to_string());
        }
    }
    meta
}

const PASSING: &str = "passing";
