//! Rules that cross resources.

mod federation;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use pillion_model::name::ServiceName;
use serde::Serialize;

use crate::reader::{did_you_mean, service_from};
use crate::route::{Rule, Share};
use crate::{AuthorizationPolicy, Kind, ResourceKey, ResourceSet, Route, Service};

/// What is wrong with a resource among the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The resource.
    pub key: ResourceKey,
    /// The field, such as `rules[0].split[1].subset`.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.key, self.path, self.message)
    }
}

/// Every problem of `set`, in the order of the resources, where every service has a Service resource.
pub fn check(set: &ResourceSet) -> Vec<Problem> {
    check_among(set, &|_| false)
}

/// As [`check`], where a Route or AuthorizationPolicy may also point at a service that only instances
/// register; then its ports are not judged. `registered` tells which these are.
pub fn check_among(set: &ResourceSet, registered: &dyn Fn(&ServiceName) -> bool) -> Vec<Problem> {
    let mut checker = Checker { set, registered, problems: Vec::new() };
    for (name, service) in set.services() {
        checker.service(name, service);
    }
    checker.hosts();
    checker.federations();
    for route in set.routes() {
        checker.route(route);
    }
    for policy in set.policies() {
        checker.policy(policy);
    }
    checker.problems
}

struct Checker<'a> {
    set: &'a ResourceSet,
    registered: &'a dyn Fn(&ServiceName) -> bool,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn refuse(&mut self, key: &ResourceKey, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: key.clone(), path: path.into(), message: message.into() });
    }

    fn service(&mut self, name: &ServiceName, service: &Service) {
        let key = ResourceKey::new(Kind::Service, name.namespace(), name.service());
        let (mut names, mut numbers) = (BTreeMap::new(), BTreeMap::new());
        for (index, port) in service.ports.iter().enumerate() {
            if let Some(first) = names.insert(port.name.as_str(), index) {
                let message = format!("port name {:?} is already that of ports[{first}]", port.name);
                self.refuse(&key, format!("ports[{index}].name"), message);
            }
            if let Some(first) = numbers.insert(port.port, index) {
                let message = format!("port {} is already that of ports[{first}]", port.port);
                self.refuse(&key, format!("ports[{index}].port"), message);
            }
        }
        if let Some(check) = &service.health_check {
            self.health_check(&key, service, check);
        }
        self.shared(&key, service);
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            if endpoint.port.is_some() && service.ports.len() > 1 {
                let message = "is ambiguous, the service has several ports; leave it out and set each port's targetPort";
                self.refuse(&key, format!("endpoints[{index}].port"), message);
            }
        }
    }

    fn health_check(&mut self, key: &ResourceKey, service: &Service, check: &crate::service::HealthCheck) {
        let port = match &check.port {
            None => service.ports.first(),
            Some(name) => {
                if service.port(name).is_none() {
                    let message = missing_port(name, service);
                    self.refuse(key, "healthCheck.port", message);
                }
                service.port(name)
            }
        };
        let Some(port) = port else { return };
        if check.http.is_some() && !port.protocol.is_http() {
            let message = format!("port {:?} is tcp; want `tcp: true` or another `port`", port.name);
            self.refuse(key, "healthCheck.http", message);
        }
    }

    /// No name may lead to two services.
    fn hosts(&mut self) {
        let zone = self.set.mesh().zone;
        let mut owners: HashMap<String, &ServiceName> = HashMap::new();
        for name in self.set.services().keys() {
            for own in crate::service::dns_names(name, &zone) {
                owners.insert(own, name);
            }
        }
        for (name, service) in self.set.services() {
            let key = ResourceKey::new(Kind::Service, name.namespace(), name.service());
            for (index, host) in service.hosts.iter().enumerate() {
                let path = format!("hosts[{index}]");
                if let Some(owner) = owners.get(host.as_str()) {
                    let message = match *owner == name {
                        true => format!("{host:?} is a name of this service already"),
                        false => format!("{host:?} is a name of service {owner} already"),
                    };
                    self.refuse(&key, path, message);
                } else if *host == zone || host.ends_with(&format!(".{zone}")) {
                    let message =
                        format!("{host:?} is in the mesh's zone {zone}, whose names are given by it");
                    self.refuse(&key, path, message);
                } else {
                    owners.insert(host.clone(), name);
                }
            }
        }
    }

    /// The service `text` names from within `namespace`; reports one that does not exist.
    fn target(
        &mut self,
        key: &ResourceKey,
        path: &str,
        namespace: &str,
        text: &str,
    ) -> Option<(ServiceName, Option<&Service>)> {
        let name = service_from(namespace, text).ok()?;
        if let Some(service) = self.set.service(&name) {
            return Some((name, Some(service)));
        }
        if (self.registered)(&name) {
            return Some((name, None));
        }
        let near: Vec<String> = self
            .set
            .services()
            .keys()
            .filter(|known| known.namespace() == name.namespace())
            .map(|known| known.service().to_owned())
            .collect();
        let hint = did_you_mean(name.service(), near.iter().map(String::as_str));
        let namespace = name.namespace();
        let message = format!("there is no service {:?} in namespace {namespace:?}{hint}", name.service());
        self.refuse(key, path, message);
        None
    }

    fn route(&mut self, route: &Route) {
        let key = ResourceKey::new(Kind::Route, &route.namespace, &route.name);
        let Some((name, service)) = self.target(&key, "to", &route.namespace, &route.to) else { return };
        let service = service.cloned();
        if let Some(service) = &service {
            self.route_port(&key, route, service);
        }
        for (index, rule) in route.rules.iter().enumerate() {
            for (at, share) in rule.split.iter().enumerate() {
                self.share(
                    &key,
                    &format!("rules[{index}].split[{at}]"),
                    route,
                    &name,
                    service.as_ref(),
                    share,
                );
            }
            self.mirror(&key, &format!("rules[{index}].mirror"), route, rule);
            if hides_the_rest(rule) && index + 1 < route.rules.len() {
                let message =
                    format!("matches every request, so rules[{}] is never reached; put it last", index + 1);
                self.refuse(&key, format!("rules[{index}]"), message);
            }
        }
        self.shadowed(&key, route, &name);
    }

    fn route_port(&mut self, key: &ResourceKey, route: &Route, service: &Service) {
        match &route.port {
            Some(port) => match service.port(port) {
                None => self.refuse(key, "port", missing_port(port, service)),
                Some(found) if !found.protocol.is_http() => {
                    self.refuse(key, "port", format!("port {port:?} is tcp; routes are for requests"));
                }
                Some(_) => {}
            },
            None if !service.ports.iter().any(|port| port.protocol.is_http()) => {
                let message = format!("service {:?} has tcp ports only; routes are for requests", route.to);
                self.refuse(key, "to", message);
            }
            None => {}
        }
    }

    /// An earlier route of the same service that leaves nothing for this one.
    fn shadowed(&mut self, key: &ResourceKey, route: &Route, name: &ServiceName) {
        let before = self
            .set
            .routes_to(name)
            .take_while(|other| other.name != route.name)
            .find(|other| {
                let same_ports = other.port.is_none() || other.port == route.port;
                same_ports && other.rules.iter().any(hides_the_rest)
            })
            .map(|other| other.name.clone());
        if let Some(before) = before {
            let message = format!(
                "is never reached: route {before:?} comes first by name and has a rule that matches every request"
            );
            self.refuse(key, "name", message);
        }
    }

    fn share(
        &mut self,
        key: &ResourceKey,
        path: &str,
        route: &Route,
        own_name: &ServiceName,
        own: Option<&Service>,
        share: &Share,
    ) {
        let (name, service) = match &share.service {
            None => (own_name.clone(), own.cloned()),
            Some(text) => {
                let path = format!("{path}.service");
                match self.target(key, &path, &route.namespace, text) {
                    Some((name, service)) => (name, service.cloned()),
                    None => return,
                }
            }
        };
        if let (Some(own), Some(service)) = (own, &service)
            && share.service.is_some()
        {
            self.same_ports(key, &format!("{path}.service"), route, own, &name, service);
        }
        self.subset(key, &format!("{path}.subset"), &name, service.as_ref(), share.subset.as_deref());
    }

    /// Traffic of a port goes to the port of the same name, or to the only HTTP port.
    fn same_ports(
        &mut self,
        key: &ResourceKey,
        path: &str,
        route: &Route,
        own: &Service,
        name: &ServiceName,
        service: &Service,
    ) {
        let http = service.ports.iter().filter(|port| port.protocol.is_http()).count();
        let wanted = own.ports.iter().filter(|port| {
            port.protocol.is_http() && route.port.as_ref().is_none_or(|only| *only == port.name)
        });
        for port in wanted {
            let fits = service.port(&port.name).is_some_and(|port| port.protocol.is_http()) || http == 1;
            if !fits {
                let message = format!("service {name} has no http, http2 or grpc port {:?}", port.name);
                self.refuse(key, path, message);
            }
        }
    }

    fn subset(
        &mut self,
        key: &ResourceKey,
        path: &str,
        name: &ServiceName,
        service: Option<&Service>,
        subset: Option<&str>,
    ) {
        let Some(subset) = subset else { return };
        let known: Vec<&str> =
            service.map(|service| service.subsets.keys().map(String::as_str).collect()).unwrap_or_default();
        if known.contains(&subset) {
            return;
        }
        let message = match (service, known.is_empty()) {
            (None, _) => format!("service {name} has no Service resource, and so no subset {subset:?}"),
            (_, true) => format!("service {name} has no subsets; {subset:?} is not one"),
            _ => {
                let hint = did_you_mean(subset, known.iter().copied());
                format!("service {name} has no subset {subset:?}, want one of {}{hint}", known.join(", "))
            }
        };
        self.refuse(key, path, message);
    }

    fn mirror(&mut self, key: &ResourceKey, path: &str, route: &Route, rule: &Rule) {
        let Some(mirror) = &rule.mirror else { return };
        let service_path = format!("{path}.service");
        let Some((name, service)) = self.target(key, &service_path, &route.namespace, &mirror.service) else {
            return;
        };
        let service = service.cloned();
        if service.as_ref().is_some_and(|service| !service.ports.iter().any(|port| port.protocol.is_http())) {
            self.refuse(key, service_path, format!("service {name} has tcp ports only"));
        }
        self.subset(key, &format!("{path}.subset"), &name, service.as_ref(), mirror.subset.as_deref());
    }

    fn policy(&mut self, policy: &AuthorizationPolicy) {
        let key = ResourceKey::new(Kind::AuthorizationPolicy, &policy.namespace, &policy.name);
        let Some((name, service)) = self.target(&key, "to", &policy.namespace, &policy.to) else { return };
        let Some(service) = service.cloned() else { return };
        self.callers_elsewhere(&key, policy, &service);
        if !service.endpoints.is_empty() || service.import.is_some() {
            let message = format!("service {name} is outside the mesh, where no policy can be enforced");
            self.refuse(&key, "to", message);
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            for (at, port) in rule.ports.iter().enumerate() {
                if service.port(port).is_none() {
                    self.refuse(&key, format!("rules[{index}].ports[{at}]"), missing_port(port, &service));
                }
            }
            let is_for = |name: &String| rule.ports.is_empty() || rule.ports.contains(name);
            let tcp = service.ports.iter().find(|port| !port.protocol.is_http() && is_for(&port.name));
            if let Some(tcp) = tcp.filter(|_| rule.needs_requests()) {
                let message = format!(
                    "port {:?} is tcp, where there are no methods, paths or headers; name the http ports in `ports`",
                    tcp.name
                );
                self.refuse(&key, format!("rules[{index}]"), message);
            }
        }
    }
}

fn missing_port(name: &str, service: &Service) -> String {
    let known: Vec<&str> = service.ports.iter().map(|port| port.name.as_str()).collect();
    let hint = did_you_mean(name, known.iter().copied());
    format!("service {:?} has no port {name:?}, want one of {}{hint}", service.name, known.join(", "))
}

/// Whether a rule matches every request.
fn hides_the_rest(rule: &Rule) -> bool {
    use crate::route::PathMatch;
    let Some(matches) = &rule.matches else { return true };
    let any_path = match &matches.path {
        None => true,
        Some(PathMatch::Prefix(prefix)) => prefix == "/",
        Some(_) => false,
    };
    any_path
        && matches.method.is_empty()
        && matches.headers.is_empty()
        && matches.query.is_empty()
        && matches.grpc.is_none()
}
