//! What is shared with other meshes: every trust domain that is named has its Federation, and nothing is
//! shared without mutual TLS.

use pillion_model::name::ServiceName;

use super::Checker;
use crate::reader::did_you_mean;
use crate::service::Mtls;
use crate::{AuthorizationPolicy, Kind, ResourceKey, Service};

impl Checker<'_> {
    /// A trust domain has one Federation, and ours has none.
    pub(super) fn federations(&mut self) {
        let own = self.set.mesh().trust_domain;
        let mut owners = std::collections::BTreeMap::new();
        for federation in self.set.federations() {
            let key = ResourceKey::new(Kind::Federation, &federation.namespace, &federation.name);
            if federation.trust_domain == own {
                self.refuse(&key, "trustDomain", format!("{own:?} is this mesh's own trust domain"));
            }
            if let Some(first) = owners.insert(federation.trust_domain.as_str(), key.clone()) {
                let message = format!("{:?} is already that of {first}", federation.trust_domain);
                self.refuse(&key, "trustDomain", message);
            }
        }
    }

    /// What a service exports or imports.
    pub(super) fn shared(&mut self, key: &ResourceKey, service: &Service) {
        for (index, domain) in service.export.iter().enumerate() {
            self.known_domain(key, &format!("export[{index}]"), domain);
        }
        if let Some(import) = &service.import {
            self.known_domain(key, "import.trustDomain", &import.trust_domain);
            if self.has_domain(&import.trust_domain).is_some_and(|services| !services) {
                let message =
                    format!("the Federation of {:?} names no `services` to import from", import.trust_domain);
                self.refuse(key, "import.trustDomain", message);
            }
        }
        if service.import.is_none() && service.export.is_empty() {
            return;
        }
        let mesh = self.set.mesh().mtls;
        for (index, port) in service.ports.iter().enumerate() {
            let mtls = port.mtls.or(service.mtls).unwrap_or(mesh);
            // Exported: our own callers may still come without it where that is permitted.
            let enough = mtls == Mtls::Strict || (service.import.is_none() && mtls == Mtls::Permissive);
            if !enough {
                let message = format!("port {:?} is shared with another mesh, want mutual TLS", port.name);
                self.refuse(key, format!("ports[{index}].mtls"), message);
            }
        }
    }

    /// Callers from other meshes whom a policy names.
    pub(super) fn callers_elsewhere(
        &mut self,
        key: &ResourceKey,
        policy: &AuthorizationPolicy,
        service: &Service,
    ) {
        for (index, rule) in policy.rules.iter().enumerate() {
            for (at, caller) in rule.from.iter().enumerate() {
                let Some(domain) = &caller.trust_domain else { continue };
                let path = format!("rules[{index}].from[{at}].trustDomain");
                if !service.export.contains(domain) {
                    let name = ServiceName::new(&service.namespace, &service.name);
                    let name = name.map_or_else(|_| service.name.clone(), |name| name.to_string());
                    let message = format!(
                        "service {name} is not exported to {domain:?}; add it to the service's `export`"
                    );
                    self.refuse(key, path, message);
                }
            }
        }
    }

    fn known_domain(&mut self, key: &ResourceKey, path: &str, domain: &str) {
        if self.has_domain(domain).is_some() {
            return;
        }
        let known: Vec<String> = self.set.federations().map(|it| it.trust_domain.clone()).collect();
        let hint = did_you_mean(domain, known.iter().map(String::as_str));
        self.refuse(key, path, format!("there is no Federation with trust domain {domain:?}{hint}"));
    }

    /// Whether a trust domain is federated, and then whether its services can be asked for.
    fn has_domain(&self, domain: &str) -> Option<bool> {
        let federation = self.set.federations().find(|federation| federation.trust_domain == domain)?;
        Some(federation.services.is_some())
    }
}
