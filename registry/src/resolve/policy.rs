//! AuthorizationPolicies of a service as RBAC rules of one of its ports.

use std::collections::BTreeMap;

use pillion_config::AuthorizationPolicy;
use pillion_config::mesh::Access;
use pillion_config::policy::{Caller, PolicyAction, PolicyRule, condition_header};
use pillion_model::http::HttpFilter;
use pillion_model::matcher::{HeaderMatcher, HeaderValueMatch, Pattern, StringMatcher};
use pillion_model::name::{ServiceName, SpiffeId, TrustDomain};
use pillion_model::rbac::{Action, Permission, Policy, Principal, Rbac};

use super::{PortView, ServiceView};

/// The rules of one port, by what a match means.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rules {
    deny: BTreeMap<String, Policy>,
    deny_dry: BTreeMap<String, Policy>,
    audit: BTreeMap<String, Policy>,
    /// `None`: whoever passed the deny rules may pass.
    allow: Option<BTreeMap<String, Policy>>,
    allow_dry: BTreeMap<String, Policy>,
    /// Whom an allow rule without `from` means where callers from other meshes may come: not them.
    anybody: Option<Principal>,
}

impl Rules {
    /// What applies to `port`.
    pub(super) fn of(view: &ServiceView<'_>, port: &PortView) -> Self {
        let mesh = view.input.resources.mesh();
        let trust_domain = TrustDomain::parse(&mesh.trust_domain).unwrap_or_default();
        let is_exported = view.service.is_some_and(|service| !service.export.is_empty());
        let anybody = is_exported.then(|| not_from_elsewhere(&trust_domain));
        let mut rules = Self { anybody, ..Self::default() };
        if mesh.authorization == Access::Deny {
            rules.allow = Some(BTreeMap::new());
        }
        for policy in view.input.resources.policies_to(view.name) {
            rules.add(policy, port, &trust_domain);
        }
        if let Some(ours) = rules.anybody.clone() {
            let ours = Policy { permissions: vec![Permission::Any], principals: vec![ours] };
            rules.allow.get_or_insert_with(|| [(OWN_MESH_POLICY.to_owned(), ours)].into());
        }
        rules
    }

    fn add(&mut self, policy: &AuthorizationPolicy, port: &PortView, trust_domain: &TrustDomain) {
        let into = match (policy.action, policy.dry_run) {
            (PolicyAction::Deny, false) => &mut self.deny,
            (PolicyAction::Deny, true) => &mut self.deny_dry,
            (PolicyAction::Audit, _) => &mut self.audit,
            (PolicyAction::Allow, true) => &mut self.allow_dry,
            // It counts on every port, even one that no rule of it is for: there it allows nobody.
            (PolicyAction::Allow, false) => self.allow.get_or_insert_default(),
        };
        for (index, rule) in policy.rules.iter().enumerate() {
            if !rule.ports.is_empty() && !rule.ports.contains(&port.name) {
                continue;
            }
            let requests = port.protocol.is_http();
            // On tcp a condition on requests cannot be judged: then a deny rule denies all the same,
            // and an allow rule does not allow.
            if !requests && rule.needs_requests() && policy.action == PolicyAction::Allow {
                continue;
            }
            let permission = if requests { permission(rule) } else { Permission::Any };
            let principals = match rule.from.is_empty() && policy.action == PolicyAction::Allow {
                true => vec![self.anybody.clone().unwrap_or(Principal::Any)],
                false => principals(rule, &policy.namespace, trust_domain),
            };
            into.insert(
                format!("{}[{index}]", policy.name),
                Policy { permissions: vec![permission], principals },
            );
        }
    }

    /// The HTTP filters that enforce the rules, in order.
    pub(super) fn http_filters(&self) -> Vec<HttpFilter> {
        let mut filters = Vec::new();
        let rbac = |action, policies: &BTreeMap<String, Policy>| Rbac { action, policies: policies.clone() };
        let some = |action, policies: &BTreeMap<String, Policy>| {
            (!policies.is_empty()).then(|| rbac(action, policies))
        };
        let deny = some(Action::Deny, &self.deny);
        let deny_dry = some(Action::Deny, &self.deny_dry);
        if deny.is_some() || deny_dry.is_some() {
            filters.push(HttpFilter::Rbac { rules: deny, shadow_rules: deny_dry });
        }
        if let Some(audit) = some(Action::Log, &self.audit) {
            filters.push(HttpFilter::Rbac { rules: Some(audit), shadow_rules: None });
        }
        let allow = self.allow.as_ref().map(|policies| rbac(Action::Allow, policies));
        // What would be allowed if the dry runs counted: together with what is.
        let allow_dry = (!self.allow_dry.is_empty()).then(|| {
            let mut policies = self.allow.clone().unwrap_or_default();
            policies.extend(self.allow_dry.clone());
            Rbac { action: Action::Allow, policies }
        });
        if allow.is_some() || allow_dry.is_some() {
            filters.push(HttpFilter::Rbac { rules: allow, shadow_rules: allow_dry });
        }
        filters
    }

    /// The network rules that enforce the policies on bytes. Dry runs are logged.
    pub(super) fn network_rules(&self) -> Vec<Rbac> {
        let mut rules = Vec::new();
        let mut push = |action, policies: BTreeMap<String, Policy>| {
            if !policies.is_empty() {
                rules.push(Rbac { action, policies });
            }
        };
        push(Action::Deny, self.deny.clone());
        let logged = [&self.audit, &self.deny_dry, &self.allow_dry].into_iter().flatten();
        push(Action::Log, logged.map(|(name, policy)| (name.clone(), policy.clone())).collect());
        if let Some(allow) = &self.allow {
            rules.push(Rbac { action: Action::Allow, policies: allow.clone() });
        }
        rules
    }

    /// The same rules where `paths` may also be read by anyone.
    pub(super) fn with_probes(&self, paths: &[String]) -> Self {
        let mut rules = self.clone();
        if let Some(allow) = rules.allow.as_mut().filter(|_| !paths.is_empty()) {
            allow.insert(PROBES_POLICY.to_owned(), probes_policy(paths));
        }
        rules
    }
}

/// Name of the policy of an exported service that lets its own mesh through, where no other says whom.
const OWN_MESH_POLICY: &str = "pillion:own-mesh";

/// Everybody but those with an identity of another trust domain.
fn not_from_elsewhere(own: &TrustDomain) -> Principal {
    let is_of = |prefix: String| Principal::Authenticated(Some(StringMatcher::prefix(prefix)));
    let ours = is_of(format!("spiffe://{own}/"));
    let elsewhere = Principal::And(vec![is_of("spiffe://".to_owned()), Principal::Not(Box::new(ours))]);
    Principal::Not(Box::new(elsewhere))
}

/// Name of the policy that lets probes through.
const PROBES_POLICY: &str = "pillion:probes";

/// Lets nothing through but reading `paths`.
pub(super) fn only_probes(paths: &[String]) -> HttpFilter {
    let policies = [(PROBES_POLICY.to_owned(), probes_policy(paths))].into();
    HttpFilter::Rbac { rules: Some(Rbac { action: Action::Allow, policies }), shadow_rules: None }
}

fn probes_policy(paths: &[String]) -> Policy {
    let methods = Permission::Or(["GET", "HEAD"].map(method).into());
    let paths = Permission::Or(paths.iter().map(|path| url_path(path)).collect());
    Policy { permissions: vec![Permission::And(vec![methods, paths])], principals: vec![Principal::Any] }
}

fn permission(rule: &PolicyRule) -> Permission {
    let mut all = Vec::new();
    if !rule.methods.is_empty() {
        all.push(Permission::Or(rule.methods.iter().map(|name| method(name)).collect()));
    }
    if !rule.paths.is_empty() {
        all.push(Permission::Or(rule.paths.iter().map(|path| url_path(path)).collect()));
    }
    for (key, values) in &rule.when {
        all.push(Permission::Or(values.iter().map(|value| condition(key, value)).collect()));
    }
    match all.len() {
        0 => Permission::Any,
        1 => all.remove(0),
        _ => Permission::And(all),
    }
}

fn method(name: &str) -> Permission {
    header(":method", HeaderValueMatch::Text(StringMatcher::exact(name)))
}

fn url_path(path: &str) -> Permission {
    Permission::UrlPath(match path.strip_suffix('*') {
        Some(prefix) => StringMatcher::prefix(prefix),
        None => StringMatcher::exact(path),
    })
}

fn condition(key: &str, value: &str) -> Permission {
    // A key that names no header was refused by config; a header nobody sends never matches.
    let name = condition_header(key).unwrap_or_else(|| ":none".to_owned());
    let text = |pattern| HeaderValueMatch::Text(StringMatcher { pattern, ignore_case: false });
    let value = match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => HeaderValueMatch::Present(true),
        (Some(end), _) => text(Pattern::Suffix(end.to_owned())),
        (None, Some(begin)) => text(Pattern::Prefix(begin.to_owned())),
        (None, None) => text(Pattern::Exact(value.to_owned())),
    };
    header(&name, value)
}

fn header(name: &str, value: HeaderValueMatch) -> Permission {
    Permission::Header(HeaderMatcher {
        name: name.to_owned(),
        value,
        invert: false,
        treat_missing_as_empty: false,
    })
}

fn principals(rule: &PolicyRule, namespace: &str, trust_domain: &TrustDomain) -> Vec<Principal> {
    if rule.from.is_empty() {
        return vec![Principal::Any];
    }
    let mut principals: Vec<_> =
        rule.from.iter().filter_map(|caller| principal(caller, namespace, trust_domain)).collect();
    if principals.is_empty() {
        principals.push(Principal::Not(Box::new(Principal::Any)));
    }
    principals
}

fn principal(caller: &Caller, namespace: &str, trust_domain: &TrustDomain) -> Option<Principal> {
    let elsewhere = caller.trust_domain.as_deref().map(TrustDomain::parse).transpose().ok()?;
    let trust_domain = elsewhere.as_ref().unwrap_or(trust_domain);
    let matcher = match (&caller.service, &caller.namespace) {
        (Some(service), own) => {
            let name = match service.contains('.') {
                true => service.parse().ok()?,
                false => ServiceName::new(own.as_deref().unwrap_or(namespace), service).ok()?,
            };
            StringMatcher::exact(SpiffeId::service(trust_domain.clone(), name).to_string())
        }
        (None, Some(namespace)) => StringMatcher::prefix(format!("spiffe://{trust_domain}/ns/{namespace}/")),
        (None, None) => StringMatcher::prefix(format!("spiffe://{}/", elsewhere.as_ref()?)),
    };
    Some(Principal::Authenticated(Some(matcher)))
}
