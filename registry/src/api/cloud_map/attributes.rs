//! An instance as Cloud Map's attributes say it, and the other way round.
//!
//! Custom attributes become labels, so that subsets can select by them; those too long for a label
//! become metadata. `AVAILABILITY_ZONE`, which ECS sets, is the zone as well.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pillion_model::health::Health;
use pillion_model::instance::{Instance, Protocol};
use pillion_model::name::{InstanceId, ServiceName};
use pillion_net::tls::{hex, sha256};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use crate::catalog::{PORT_NAME_DEFAULT, Registration, World};

pub(super) type Attributes = BTreeMap<String, String>;

const IPV4: &str = "AWS_INSTANCE_IPV4";
const IPV6: &str = "AWS_INSTANCE_IPV6";
const PORT: &str = "AWS_INSTANCE_PORT";
const HEALTH: &str = "AWS_INIT_HEALTH_STATUS";
const ZONE: &str = "AVAILABILITY_ZONE";
/// What only AWS can look up.
const OF_AWS: [&str; 3] = ["AWS_ALIAS_DNS_NAME", "AWS_EC2_INSTANCE_ID", "AWS_INSTANCE_CNAME"];
/// Metadata that keeps an instance's id as it was given, where that is no label.
const GIVEN_ID: &str = "cloudMapInstanceId";
/// Longest id in Cloud Map.
const ID_BYTES_MAX: usize = 64;
/// Longest value of a label; longer ones are metadata.
const LABEL_BYTES_MAX: usize = 253;
/// Longest name of a zone.
const ZONE_BYTES_MAX: usize = 63;
/// What is kept of an id that is no label.
const ID_PREFIX_MAX: usize = 40;

/// The id of an instance here: as given where it is a label, else made of it, always the same.
pub(super) fn instance_id(given: &str) -> Result<InstanceId, Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_/:.@-".contains(c);
    if given.is_empty() || given.len() > ID_BYTES_MAX || !given.chars().all(allowed) {
        let want = "1 to 64 letters, digits and _/:.@-";
        return Err(Fault::input(format!("InstanceId: got `{given}`, want {want}")));
    }
    if let Ok(id) = InstanceId::parse(given) {
        return Ok(id);
    }
    let clean = given.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let prefix = clean[..clean.len().min(ID_PREFIX_MAX)].trim_matches('-');
    let prefix = if prefix.is_empty() { "i" } else { prefix };
    let id = format!("{prefix}-{}", &hex(&sha256(given.as_bytes()))[..16]);
    InstanceId::parse(&id).map_err(|error| Fault::input(format!("InstanceId: `{given}` {error}")))
}

/// The id as it was given.
pub(super) fn given_id(instance: &Instance) -> String {
    instance.metadata.get(GIVEN_ID).cloned().unwrap_or_else(|| instance.id.to_string())
}

/// What these attributes register. Without a heartbeat, it stays until it is deregistered.
pub(super) fn registration(
    service: ServiceName,
    given_id: &str,
    attributes: &Attributes,
    world: &World,
) -> Result<Registration, Fault> {
    if let Some(other) = OF_AWS.iter().find(|name| attributes.contains_key(**name)) {
        let message = format!("Attributes: {other} needs AWS to look it up; give {IPV4} or {IPV6}");
        return Err(Fault::input(message));
    }
    let id = instance_id(given_id)?;
    let (mut labels, mut metadata) = (Map::new(), Map::new());
    for (name, value) in attributes.iter().filter(|(name, _)| ![IPV4, PORT].contains(&name.as_str())) {
        let is_label = !name.starts_with("AWS_") && value.len() <= LABEL_BYTES_MAX;
        let to = if is_label { &mut labels } else { &mut metadata };
        to.insert(name.clone(), Value::String(value.clone()));
    }
    if id.as_str() != given_id {
        metadata.insert(GIVEN_ID.to_owned(), Value::String(given_id.to_owned()));
    }
    let port = port(&service, attributes.get(PORT).map(String::as_str), world)?;
    let mut body = json!({
        "address": address(attributes)?.to_string(),
        "ports": {port.name: {"port": port.port, "protocol": port.protocol.as_str()}},
        "labels": labels,
        "metadata": metadata,
        "ttl": "never",
    });
    match attributes.get(HEALTH).map(String::as_str) {
        None => {}
        Some("HEALTHY") => body["health"] = json!("ready"),
        Some("UNHEALTHY") => body["health"] = json!("notReady"),
        Some(other) => {
            let message = format!("Attributes: {HEALTH}: got `{other}`, want HEALTHY or UNHEALTHY");
            return Err(Fault::input(message));
        }
    }
    let is_zone = |zone: &&String| zone.len() <= ZONE_BYTES_MAX && zone.chars().all(|c| c.is_ascii_graphic());
    if let Some(zone) = attributes.get(ZONE).filter(is_zone) {
        body["zone"] = json!(zone);
    }
    Ok(Registration::parse(service, id, &body)?)
}

/// Where it is reached: of two addresses the IPv4 one. Both must be addresses of their kind.
fn address(attributes: &Attributes) -> Result<IpAddr, Fault> {
    let wrong = |name: &str, text: &str| {
        Fault::input(format!("Attributes: {name}: got `{text}`, want an address such as 10.0.0.5 or fd00::5"))
    };
    let of = |name: &str, parse: &dyn Fn(&str) -> Option<IpAddr>| match attributes.get(name) {
        None => Ok(None),
        Some(text) => parse(text).map(Some).ok_or_else(|| wrong(name, text)),
    };
    let four = of(IPV4, &|text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4))?;
    let six = of(IPV6, &|text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6))?;
    four.or(six).ok_or_else(|| Fault::input(format!("Attributes: want {IPV4} or {IPV6}, got neither")))
}

/// The attributes of any instance, whoever registered it.
pub(super) fn of(instance: &Instance) -> Attributes {
    let mut attributes = BTreeMap::clone(&instance.metadata);
    attributes.remove(GIVEN_ID);
    attributes.extend(BTreeMap::clone(&instance.labels));
    let mut add = |name: &str, value: String| {
        attributes.entry(name.to_owned()).or_insert(value);
    };
    add(if instance.address.is_ipv4() { IPV4 } else { IPV6 }, instance.address.to_string());
    let port = instance.ports.get(PORT_NAME_DEFAULT).or_else(|| instance.ports.values().next());
    if let Some(port) = port {
        add(PORT, port.port.to_string());
    }
    if !instance.zone.is_empty() {
        add(ZONE, instance.zone.clone());
    }
    attributes
}

/// Cloud Map's word for an instance's health.
pub(super) fn health(instance: &Instance) -> &'static str {
    if Health::combine(instance.health).takes_traffic() { "HEALTHY" } else { "UNHEALTHY" }
}

struct Port {
    name: String,
    port: u16,
    protocol: Protocol,
}

/// The one port that Cloud Map can tell: by the name and protocol under which the service has it.
fn port(service: &ServiceName, given: Option<&str>, world: &World) -> Result<Port, Fault> {
    let known = known_ports(service, world);
    let only = || (known.len() == 1).then(|| &known[0]);
    let Some(text) = given else {
        let Some(Port { name, port, protocol }) = only() else {
            let message = format!("Attributes: {PORT} is missing, and the service has not one port");
            return Err(Fault::input(message));
        };
        return Ok(Port { name: name.clone(), port: *port, protocol: *protocol });
    };
    let Some(port) = text.parse::<u16>().ok().filter(|port| *port != 0) else {
        return Err(Fault::input(format!("Attributes: {PORT}: got `{text}`, want 1 to 65535")));
    };
    let same = known.iter().find(|known| known.port == port).or_else(only);
    let (name, protocol) = same.map_or_else(
        || (PORT_NAME_DEFAULT.to_owned(), Protocol::Http),
        |known| (known.name.clone(), known.protocol),
    );
    Ok(Port { name, port, protocol })
}

/// The ports of a service: of its resource, else as its instances declared them.
fn known_ports(service: &ServiceName, world: &World) -> Vec<Port> {
    if let Some(explicit) = world.resources.set.service(service) {
        let ports = explicit.ports.iter();
        return ports
            .map(|port| Port { name: port.name.clone(), port: port.target(), protocol: port.protocol })
            .collect();
    }
    let registered = world.catalog.services.get(service).into_iter().flat_map(|service| &service.ports);
    registered
        .map(|(name, port)| Port { name: name.clone(), port: port.port, protocol: port.protocol })
        .collect()
}
