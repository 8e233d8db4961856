//! What one mesh tells another of its services: names, ports, and where their sidecars are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pillion_model::endpoint::{Endpoint, HostAddress};
use pillion_model::health::Health;
use pillion_model::name::{ServiceName, TrustDomain, check_label};
use pillion_net::tls::{hex, sha256};
use serde::{Deserialize, Serialize};

use crate::resolve::{MeshModel, ServiceModel};

/// What other meshes export to us, by their trust domains.
pub type Imports = BTreeMap<TrustDomain, Arc<Exports>>;

/// The services that one mesh exports to another, by name (`orders.shop`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exports {
    /// The services.
    pub services: BTreeMap<String, ExportedService>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedService {
    /// Its ports that are reached over mutual TLS, by name.
    pub ports: BTreeMap<String, ExportedPort>,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedPort {
    /// What callers dial there.
    pub port: u16,
    /// `http`, `http2`, `grpc` or `tcp`.
    pub protocol: String,
    /// The server name that leads to it at an instance's sidecar.
    pub sni: String,
    /// The instances' sidecars.
    pub endpoints: Vec<ExportedEndpoint>,
}

/// The sidecar of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedEndpoint {
    /// The instance's id.
    pub instance: String,
    /// Its inbound port.
    pub address: SocketAddr,
    /// Relative share of traffic.
    pub weight: u32,
    /// `serving`, `warning`, `stale` or `draining`.
    pub health: String,
    /// Availability zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// For subsets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What `model` exports to `to`.
pub fn exports(model: &MeshModel, to: &TrustDomain) -> Exports {
    let exported = model.services.values().filter(|service| service.inbound.exported_to.contains(to));
    let services = exported.map(|service| (service.service.service.to_string(), service_of(model, service)));
    Exports { services: services.collect() }
}

fn service_of(model: &MeshModel, service: &ServiceModel) -> ExportedService {
    let name = &service.service.service;
    let port = |port: &pillion_model::mesh::MeshPort| {
        let cluster = pillion_model::name::outbound_cluster(&port.name, "", name);
        let assignment = service.endpoints.iter().find(|assignment| assignment.cluster == cluster);
        let localities = assignment.into_iter().flat_map(|assignment| &assignment.localities);
        let endpoints = localities.flat_map(|locality| {
            // Without a sidecar there is nobody there who could tell callers of another mesh apart.
            let meshed = locality.endpoints.iter().filter(|endpoint| !endpoint.transport.is_empty());
            meshed.filter_map(|endpoint| endpoint_of(endpoint, &locality.locality.zone))
        });
        let told = ExportedPort {
            port: port.port,
            protocol: port.protocol.as_str().to_owned(),
            sni: name.sni(&port.name, &model.zone),
            endpoints: endpoints.collect(),
        };
        (port.name.clone(), told)
    };
    ExportedService { ports: service.service.ports.iter().map(port).collect() }
}

fn endpoint_of(endpoint: &Endpoint, zone: &str) -> Option<ExportedEndpoint> {
    let HostAddress::Socket(address) = endpoint.address else { return None };
    Some(ExportedEndpoint {
        instance: endpoint.hostname.clone(),
        address,
        weight: endpoint.weight,
        health: endpoint.health.as_str().to_owned(),
        zone: zone.to_owned(),
        labels: (*endpoint.labels).clone(),
    })
}

impl Exports {
    /// What differs when anything does.
    pub fn version(&self) -> String {
        let text = serde_json::to_vec(self).expect("plain fields have a JSON form");
        hex(&sha256(&text)[..16])
    }

    /// Whether what another mesh tells can be used.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be, and where.
    pub fn check(&self) -> Result<(), String> {
        if self.services.len() > SERVICES_MAX {
            return Err(format!("{} services, want at most {SERVICES_MAX}", self.services.len()));
        }
        let ports = self.services.values().flat_map(|service| service.ports.values());
        let endpoints: usize = ports.map(|port| port.endpoints.len()).sum();
        if endpoints > ENDPOINTS_MAX {
            return Err(format!("{endpoints} endpoints, want at most {ENDPOINTS_MAX}"));
        }
        for (name, service) in &self.services {
            let at = |what: &str, reason: &dyn std::fmt::Display| format!("services.{name}{what}: {reason}");
            name.parse::<ServiceName>().map_err(|error| at("", &error))?;
            for (name, port) in &service.ports {
                check_label(name).map_err(|error| at(".ports", &error))?;
                check_server_name(&port.sni).map_err(|error| at(".ports.sni", &error))?;
                for endpoint in &port.endpoints {
                    endpoint.check().map_err(|error| at(".ports.endpoints", &error))?;
                }
            }
        }
        Ok(())
    }
}

impl ExportedEndpoint {
    fn check(&self) -> Result<(), String> {
        check_label(&self.instance).map_err(|error| format!("instance {error}"))?;
        let ip = self.address.ip();
        if ip.is_unspecified() || ip.is_multicast() || self.address.port() == 0 {
            return Err(format!("{} is no address of an instance", self.address));
        }
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            return Err(format!("weight {}, want 1 to {WEIGHT_MAX}", self.weight));
        }
        if health(&self.health).is_none() {
            return Err(format!("health {:?} is none", self.health));
        }
        let long = |text: &String| text.len() > TEXT_MAX;
        if long(&self.zone)
            || self.labels.len() > LABELS_MAX
            || self.labels.iter().any(|(k, v)| long(k) || long(v))
        {
            return Err("zone or labels are too long or too many".to_owned());
        }
        Ok(())
    }

    /// As callers' sidecars are told it.
    pub fn endpoint(&self, meshed: &Arc<BTreeMap<String, String>>) -> Endpoint {
        Endpoint {
            address: HostAddress::Socket(self.address),
            hostname: self.instance.clone(),
            weight: self.weight,
            health: health(&self.health).unwrap_or(Health::Down),
            labels: Arc::new(self.labels.clone()),
            other_labels: Default::default(),
            transport: Arc::clone(meshed),
        }
    }
}

fn health(word: &str) -> Option<Health> {
    let all = [Health::Serving, Health::Warning, Health::Stale, Health::Draining];
    all.into_iter().find(|health| health.as_str() == word)
}

fn check_server_name(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err("is longer than 253 characters".to_owned());
    }
    name.split('.').try_for_each(|label| check_label(label).map_err(|error| format!("{name:?} {error}")))
}

const SERVICES_MAX: usize = 1000;
const ENDPOINTS_MAX: usize = 100_000;
const WEIGHT_MAX: u32 = 65_535;
const LABELS_MAX: usize = 64;
const TEXT_MAX: usize = 253;
