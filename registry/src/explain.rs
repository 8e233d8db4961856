//! What would happen to a request, and why: the route, the split, the endpoints, every policy.
//!
//! Uses the functions the proxy uses ([`RouteTable::find`], [`Rbac::authorize`], the one path
//! normalisation), over the same model: what this says is what the proxies do.

mod elsewhere;
mod left_out;
mod reason;
mod render;
mod request;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pillion_config::service::Mtls;
use pillion_model::cluster::{Cluster, Discovery};
use pillion_model::endpoint::{HostAddress, LoadAssignment};
use pillion_model::http::HttpFilter;
use pillion_model::matcher::RequestView;
use pillion_model::mesh::MeshPort;
use pillion_model::name::{ServiceName, SpiffeId, parse_outbound_cluster};
use pillion_model::rbac::{Action, Peer, Rbac};
use pillion_model::route::{ClusterChoice, Forward, RouteAction, RouteTable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::request::Request;
use crate::resolve::{InboundPort, MeshModel, ServiceModel};

/// What is asked.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    /// The calling service, `web.shop`, or a caller of another mesh, `spiffe://acme.example/ns/shop/svc/web`.
    /// Without one the caller has no identity.
    #[serde(default)]
    pub caller: Option<String>,
    /// The called service: `orders.shop`, or any of its DNS names.
    pub service: String,
    /// The port's name or number. Default: 80 if there is one, else the first.
    #[serde(default)]
    pub port: Option<String>,
    /// Default `GET`.
    #[serde(default)]
    pub method: Option<String>,
    /// Path and query. Default `/`.
    #[serde(default)]
    pub path: Option<String>,
    /// Headers, by name in any case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The caller is not a service's name.
    #[error("{name:?} {reason}")]
    Caller {
        /// As asked.
        name: String,
        /// Why not.
        reason: String,
    },
    /// No service of this name.
    #[error("there is no service {0:?} in the mesh")]
    Service(String),
    /// No such port.
    #[error("service {service} has no port {port:?}, want one of {known}")]
    Port {
        /// The service.
        service: String,
        /// As asked.
        port: String,
        /// Its ports.
        known: String,
    },
}

/// What would happen.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The caller's identity.
    pub caller: Option<String>,
    /// Whether a service of the caller's name is known; one that is not may just not have started yet.
    pub caller_known: bool,
    /// The service called.
    pub service: String,
    /// The port: name, number, protocol.
    pub port: String,
    /// Method and normalised path; nothing on a tcp port.
    pub request: Option<String>,
    /// The route that was chosen; nothing on a tcp port.
    pub route: Option<RouteStep>,
    /// Where the request may go, by weight.
    pub destinations: Vec<DestinationStep>,
    /// One sentence.
    pub outcome: String,
}

/// The chosen route.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteStep {
    /// The route configuration.
    pub configuration: String,
    /// `<Route name>[<rule index>]`, or `default`.
    pub name: String,
    /// What it does.
    pub action: String,
    /// Time for the whole answer.
    pub timeout: Option<String>,
    /// Retries: how many, and on what.
    pub retries: Option<String>,
}

/// One of the clusters the route sends to.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStep {
    /// The cluster.
    pub cluster: String,
    /// Service and namespace.
    pub service: String,
    /// Subset; empty: all instances.
    pub subset: String,
    /// Share of requests in percent.
    pub percent: f64,
    /// Mutual TLS: `strict`, `permissive`, `disabled`; nothing outside the mesh.
    pub mtls: Option<String>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointStep>,
    /// How many instances are no endpoints for want of a sidecar, where mutual TLS is strict.
    pub without_sidecar: usize,
    /// Whether the destination's own sidecar lets the request in.
    pub authorization: Authorization,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStep {
    /// The instance.
    pub instance: String,
    /// What is dialled.
    pub address: String,
    /// As the registry combines it.
    pub health: String,
    /// Relative share.
    pub weight: u32,
    /// Availability zone.
    pub zone: String,
    /// 0 is used first.
    pub priority: u32,
}

/// Whether the request is let in, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// The decision.
    pub allowed: bool,
    /// What it rests on.
    pub reason: String,
    /// Every policy, in the order in which they are asked.
    pub policies: Vec<PolicyStep>,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStep {
    /// `<policy name>[<rule index>]`.
    pub policy: String,
    /// `allow`, `deny` or `audit`.
    pub action: String,
    /// It decides nothing.
    pub dry_run: bool,
    /// Whether the request matches it.
    pub matched: bool,
    /// What matched or did not.
    pub reason: String,
}

/// Says what would happen.
///
/// # Errors
///
/// [`ExplainError`] if the question names what does not exist.
pub fn explain(model: &MeshModel, question: &Question) -> Result<Explanation, ExplainError> {
    let caller = question.caller.as_deref().map(|text| identity(model, text)).transpose()?;
    let service = find_service(model, &question.service)?;
    let port = find_port(service, question.port.as_deref())?;
    let explainer = Explainer { model, caller };
    if port.protocol.is_http() {
        Ok(explainer.request(service, port, question))
    } else {
        Ok(explainer.connection(service, port))
    }
}

impl DestinationStep {
    fn takes_traffic(&self) -> bool {
        self.endpoints.iter().any(|one| matches!(one.health.as_str(), "serving" | "warning" | "stale"))
    }
}

fn identity(model: &MeshModel, text: &str) -> Result<SpiffeId, ExplainError> {
    if text.starts_with("spiffe://") {
        return elsewhere::identity(text);
    }
    let name = text.parse::<ServiceName>();
    let name =
        name.map_err(|error| ExplainError::Caller { name: text.to_owned(), reason: error.to_string() })?;
    Ok(SpiffeId::service(model.trust_domain.clone(), name))
}

fn find_service<'a>(model: &'a MeshModel, text: &str) -> Result<&'a ServiceModel, ExplainError> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let by_name = model.names.get(&lower).cloned().or_else(|| lower.parse().ok());
    let service = by_name.and_then(|name| model.services.get(&name));
    service.map(|service| &**service).ok_or_else(|| ExplainError::Service(text.to_owned()))
}

fn find_port<'a>(service: &'a ServiceModel, asked: Option<&str>) -> Result<&'a MeshPort, ExplainError> {
    let ports = &service.service.ports;
    let found = match asked {
        Some(asked) => ports.iter().find(|port| port.name == asked || port.port.to_string() == asked),
        None => ports.iter().find(|port| port.port == 80).or_else(|| ports.first()),
    };
    let known = || ports.iter().map(|port| format!("{} ({})", port.name, port.port)).collect::<Vec<_>>();
    found.ok_or_else(|| ExplainError::Port {
        service: service.service.service.to_string(),
        port: asked.unwrap_or_default().to_owned(),
        known: known().join(", "),
    })
}

struct Explainer<'a> {
    model: &'a MeshModel,
    caller: Option<SpiffeId>,
}

impl Explainer<'_> {
    fn request(&self, service: &ServiceModel, port: &MeshPort, question: &Question) -> Explanation {
        let request = match Request::of(service, question) {
            Ok(request) => request,
            Err(path) => return self.not_normal(service, port, &path),
        };
        let configuration = service.routes.iter().find(|routes| routes.name == port.route_configuration);
        let table = configuration.and_then(|routes| RouteTable::compile(routes.clone()).ok());
        let found = table.as_ref().and_then(|table| Some(table.at(table.find(&request, 0)?).1));
        let Some(route) = found else {
            return self.explanation(service, port, Some(&request), None, Vec::new(), "no route: 404".into());
        };
        let (action, destinations) = match &route.action {
            RouteAction::Forward(forward) => {
                ("forward".to_owned(), self.destinations(&forward.to, Some(&request)))
            }
            RouteAction::Redirect(redirect) => (format!("redirect with {}", redirect.status), Vec::new()),
            RouteAction::Respond { status, .. } | RouteAction::RespondFrom { status, .. } => {
                (format!("respond with {status}"), Vec::new())
            }
            RouteAction::NonForwarding => ("accept".to_owned(), Vec::new()),
        };
        let forward = match &route.action {
            RouteAction::Forward(forward) => Some(&**forward),
            _ => None,
        };
        let step = RouteStep {
            configuration: port.route_configuration.clone(),
            name: route.name.clone(),
            timeout: forward.map(timeout_text),
            retries: forward.map(retries_text),
            action,
        };
        let outcome = match forward {
            Some(_) => outcome(&destinations),
            None => format!("answered by the caller's own sidecar: {}", step.action),
        };
        self.explanation(service, port, Some(&request), Some(step), destinations, outcome)
    }

    fn connection(&self, service: &ServiceModel, port: &MeshPort) -> Explanation {
        let share = |cluster: &String| self.destination(cluster, 100.0, None);
        let destinations: Vec<_> = port.clusters.iter().map(share).collect();
        let outcome = outcome(&destinations);
        self.explanation(service, port, None, None, destinations, outcome)
    }

    fn not_normal(&self, service: &ServiceModel, port: &MeshPort, path: &str) -> Explanation {
        let outcome = format!("refused with 400: the path {path:?} has no normal form");
        self.explanation(service, port, None, None, Vec::new(), outcome)
    }

    fn caller_is_known(&self) -> bool {
        let Some(caller) = &self.caller else { return false };
        // What there is in another mesh is not known here, and not asked.
        *caller.trust_domain() != self.model.trust_domain
            || caller.service_name().is_some_and(|name| self.model.services.contains_key(name))
    }

    fn explanation(
        &self,
        service: &ServiceModel,
        port: &MeshPort,
        request: Option<&Request>,
        route: Option<RouteStep>,
        destinations: Vec<DestinationStep>,
        outcome: String,
    ) -> Explanation {
        Explanation {
            caller: self.caller.as_ref().map(ToString::to_string),
            caller_known: self.caller_is_known(),
            service: service.service.service.to_string(),
            port: format!("{} ({} {})", port.name, port.protocol.as_str(), port.port),
            request: request.map(|request| format!("{} {}", request.method, request.path)),
            route,
            destinations,
            outcome,
        }
    }

    fn destinations(&self, choice: &ClusterChoice, request: Option<&Request>) -> Vec<DestinationStep> {
        match choice {
            ClusterChoice::Cluster(name) => vec![self.destination(name, 100.0, request)],
            ClusterChoice::Header(_) => Vec::new(),
            ClusterChoice::Weighted(clusters) => {
                let total: f64 = clusters.iter().map(|one| f64::from(one.weight)).sum();
                let percent = |weight: u32| if total > 0.0 { f64::from(weight) * 100.0 / total } else { 0.0 };
                clusters
                    .iter()
                    .map(|one| self.destination(&one.cluster, percent(one.weight), request))
                    .collect()
            }
        }
    }

    fn destination(&self, cluster: &str, percent: f64, request: Option<&Request>) -> DestinationStep {
        let parts = parse_outbound_cluster(cluster);
        let model = parts.as_ref().and_then(|(_, _, name)| self.model.services.get(name));
        let found = model.and_then(|model| model.clusters.iter().find(|have| have.name == cluster));
        let port = model
            .zip(parts.as_ref())
            .and_then(|(model, (port, ..))| model.inbound.ports.iter().find(|have| have.port.name == *port));
        let endpoints = model.zip(found).map(|(model, found)| endpoints(model, found)).unwrap_or_default();
        DestinationStep {
            cluster: cluster.to_owned(),
            service: parts.as_ref().map(|(_, _, name)| name.to_string()).unwrap_or_default(),
            subset: parts.as_ref().map(|(_, subset, _)| (*subset).to_owned()).unwrap_or_default(),
            percent,
            mtls: port.map(|port| mtls_word(port.port.mtls).to_owned()),
            endpoints,
            without_sidecar: 0,
            authorization: match (found, port) {
                (None, _) => refused("there is no such cluster: 503"),
                (Some(found), None) => {
                    Authorization { allowed: true, reason: elsewhere::decides(found), policies: Vec::new() }
                }
                (Some(_), Some(port)) => {
                    let exported_to = model.map_or(&[][..], |model| &model.inbound.exported_to);
                    let barred =
                        elsewhere::barred(self.caller.as_ref(), &self.model.trust_domain, exported_to);
                    barred.map_or_else(|| self.authorize(port, request), |reason| refused(&reason))
                }
            },
        }
    }

    /// What the destination's own sidecar decides, by its own filters.
    fn authorize(&self, port: &InboundPort, request: Option<&Request>) -> Authorization {
        // With mutual TLS switched off the callers' sidecars present no certificate.
        let caller = self.caller.as_ref().filter(|_| port.port.mtls != Mtls::Disabled);
        let names = caller.map(|id| vec![id.to_string()]);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let peer = Peer {
            names: names.as_deref(),
            direct_remote: nowhere,
            remote: nowhere,
            local: nowhere,
            server_name: None,
        };
        let view = request.map(|request| request as &dyn RequestView);
        let filters = if caller.is_some() { &port.filters } else { &port.plaintext_filters };
        let mut chain: Vec<(&Rbac, bool)> = port.network_rules.iter().map(|rbac| (rbac, false)).collect();
        for filter in filters.iter().filter(|_| port.port.protocol.is_http()) {
            let HttpFilter::Rbac { rules, shadow_rules } = filter else { continue };
            chain.extend(rules.iter().map(|rbac| (rbac, false)));
            chain.extend(shadow_rules.iter().map(|rbac| (rbac, true)));
        }
        if caller.is_none() && port.port.mtls == Mtls::Strict && port.port.probes.is_empty() {
            return refused("the port demands mutual TLS, and the caller has no identity");
        }
        decide(&chain, &peer, view)
    }
}

fn refused(reason: &str) -> Authorization {
    Authorization { allowed: false, reason: reason.to_owned(), policies: Vec::new() }
}

/// Asks every rule set in order; the first that refuses decides, the rest are listed all the same.
fn decide(chain: &[(&Rbac, bool)], peer: &Peer<'_>, request: Option<&dyn RequestView>) -> Authorization {
    let mut refusal = None;
    let mut approval = None;
    let mut policies: Vec<PolicyStep> = Vec::new();
    for &(rbac, dry_run) in chain {
        for (name, policy) in &rbac.policies {
            // A dry run of allow rules is judged together with those in force, which stand above already.
            let again = dry_run && policies.iter().any(|step| !step.dry_run && step.policy == *name);
            if again {
                continue;
            }
            policies.push(PolicyStep {
                policy: name.clone(),
                action: action_word(rbac.action).to_owned(),
                dry_run,
                matched: policy.is_match(peer, request),
                reason: reason::of(policy, peer, request),
            });
        }
        if dry_run {
            continue;
        }
        let decision = rbac.authorize(peer, request);
        match (rbac.action, decision.allowed, decision.policy) {
            (Action::Deny, false, Some(policy)) => {
                refusal = refusal.or_else(|| Some(format!("denied by {policy}")));
            }
            (Action::Allow, false, _) if rbac.policies.is_empty() => {
                let text = "the mesh denies what no policy allows, and there is no policy";
                refusal = refusal.or_else(|| Some(text.to_owned()));
            }
            (Action::Allow, false, _) => {
                refusal = refusal.or_else(|| Some("there are allow policies, and none matches".to_owned()));
            }
            (Action::Allow, true, Some(policy)) => approval = Some(format!("allowed by {policy}")),
            _ => {}
        }
    }
    let allowed = refusal.is_none();
    let reason = refusal.or(approval).unwrap_or_else(|| "no policy stands in the way".to_owned());
    Authorization { allowed, reason, policies }
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Log => "audit",
    }
}

fn mtls_word(mtls: Mtls) -> &'static str {
    match mtls {
        Mtls::Strict => "strict",
        Mtls::Permissive => "permissive",
        Mtls::Disabled => "disabled",
    }
}

fn endpoints(model: &ServiceModel, cluster: &Cluster) -> Vec<EndpointStep> {
    let assignment: Option<&LoadAssignment> = match &cluster.discovery {
        Discovery::Static(assignment)
        | Discovery::StrictDns { assignment, .. }
        | Discovery::LogicalDns { assignment, .. } => Some(assignment),
        Discovery::Eds { .. } => model.endpoints.iter().find(|assignment| assignment.cluster == cluster.name),
        Discovery::OriginalDst | Discovery::Aggregate(_) => None,
    };
    let localities = assignment.into_iter().flat_map(|assignment| &assignment.localities);
    let steps = localities.flat_map(|locality| {
        locality.endpoints.iter().map(|endpoint| EndpointStep {
            instance: endpoint.hostname.clone(),
            address: match &endpoint.address {
                HostAddress::Socket(address) => address.to_string(),
                HostAddress::Name { host, port } => format!("{host}:{port}"),
                HostAddress::Pipe(path) => path.clone(),
            },
            health: endpoint.health.as_str().to_owned(),
            weight: endpoint.weight,
            zone: locality.locality.zone.clone(),
            priority: locality.priority,
        })
    });
    steps.collect()
}

fn timeout_text(forward: &Forward) -> String {
    match forward.timeout {
        None => "none".to_owned(),
        Some(timeout) => pillion_config::DurationText(timeout).to_string(),
    }
}

fn retries_text(forward: &Forward) -> String {
    let Some(retry) = &forward.retry else { return "none".to_owned() };
    let codes = retry.status_codes.iter().map(ToString::to_string);
    let words = retry.on.tokens().filter(|word| *word != "retriable-status-codes").map(str::to_owned);
    format!("{} on {}", retry.retries, words.chain(codes).collect::<Vec<_>>().join(", "))
}

fn outcome(destinations: &[DestinationStep]) -> String {
    let used: Vec<_> = destinations.iter().filter(|one| one.percent > 0.0).collect();
    let refused: Vec<_> = used.iter().filter(|one| !one.authorization.allowed).collect();
    match refused.first() {
        Some(first) if refused.len() == used.len() => format!("refused: {}", first.authorization.reason),
        Some(first) => format!("refused in part, at {}: {}", first.cluster, first.authorization.reason),
        None => match used.iter().find(|one| !one.takes_traffic()) {
            Some(empty) => format!("allowed, but {} has no endpoint that takes traffic: 503", empty.cluster),
            None => "allowed".to_owned(),
        },
    }
}
