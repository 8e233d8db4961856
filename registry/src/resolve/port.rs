//! The ports of a service, whoever declared them.

use pillion_config::service::Mtls;
use pillion_model::instance::{Instance, InstancePort, Protocol};
use pillion_model::name::ServiceName;

use super::Input;

/// One port of a service with everything that is inherited filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Its name.
    pub name: String,
    /// What callers dial.
    pub port: u16,
    /// Where applications listen.
    pub target_port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Mutual TLS.
    pub mtls: Mtls,
    /// Paths that may be read in plaintext.
    pub probes: Vec<String>,
}

impl Input<'_> {
    /// The ports of a service: those of its Service resource, else those its instances registered.
    pub fn ports(&self, name: &ServiceName) -> Vec<PortView> {
        let mesh_mtls = self.resources.mesh().mtls;
        if let Some(service) = self.resources.service(name) {
            let view = |port: &pillion_config::service::Port| PortView {
                name: port.name.clone(),
                port: port.port,
                target_port: port.target(),
                protocol: port.protocol,
                mtls: port.mtls.or(service.mtls).unwrap_or(mesh_mtls),
                probes: port.probes.clone(),
            };
            return service.ports.iter().map(view).collect();
        }
        let Some(service) = self.registered(name) else { return Vec::new() };
        let view = |(name, port): (&String, &crate::catalog::ServicePort)| PortView {
            name: name.clone(),
            port: port.port,
            target_port: port.port,
            protocol: port.protocol,
            mtls: mesh_mtls,
            probes: Vec::new(),
        };
        service.ports.iter().map(view).collect()
    }
}

impl PortView {
    /// The port of an instance that serves this one: of the same name, else the one with the target's
    /// number.
    pub fn of<'a>(&self, instance: &'a Instance) -> Option<&'a InstancePort> {
        instance
            .ports
            .get(&self.name)
            .or_else(|| instance.ports.values().find(|port| port.port == self.target_port))
    }
}
