//! `kind: AuthorizationPolicy`: who may call a service.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::node::Value;
use crate::reader::{Field, Object, header_name};
use crate::resource::Id;
use crate::service::path_pattern;

/// Who may call a service. Deny policies are asked first; then, if a service has allow policies, one of
/// them must match; without any, the Mesh's `authorization` decides.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// Its namespace. Default `default`.
    #[schemars(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service, in the policy's own namespace.
    pub to: String,
    /// What a match means.
    pub action: PolicyAction,
    /// Decides nothing, and reports what it would have decided. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub dry_run: bool,
    /// A request matches the policy if it matches one of them.
    pub rules: Vec<PolicyRule>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PolicyAction {
    /// Let through.
    Allow,
    /// Refused.
    Deny,
    /// Counted and logged.
    Audit,
}

/// Matches if all its parts do; a part that is left out matches everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct PolicyRule {
    /// One of these callers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub from: Vec<Caller>,
    /// One of these ports, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub ports: Vec<String>,
    /// One of these methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub methods: Vec<String>,
    /// One of these paths: `/orders`, or `/orders/*` for everything below.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub paths: Vec<String>,
    /// All of these: `"request.headers[x-tenant]": [acme, "test-*"]`. A value may begin or end with `*`;
    /// `*` alone means that the header is there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub when: BTreeMap<String, Vec<String>>,
}

/// A caller: a service, or a whole namespace; of our own mesh unless `trustDomain` says which other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Caller {
    /// A service: `web`, or `web.shop` in another namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Every service of a namespace; with `service`, the namespace of that service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The other mesh that the caller is of, by the trust domain of its Federation. Without `service` and
    /// `namespace`, all of that mesh. Whoever is not named with it is never a caller from elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
}

impl AuthorizationPolicy {
    pub(crate) fn read(id: Id, mut object: Object<'_>) -> Option<Self> {
        let to = object.required("to", Field::name);
        let action = object.required("action", |field| {
            field.choice(&[
                ("allow", PolicyAction::Allow),
                ("deny", PolicyAction::Deny),
                ("audit", PolicyAction::Audit),
            ])
        });
        let dry_run = object.optional("dryRun", Field::bool).unwrap_or_default();
        let rules = object.required("rules", |field| field.list_of_some(PolicyRule::read));
        object.finish();
        Some(Self {
            namespace: id.namespace,
            name: id.name,
            to: to?,
            action: action?,
            dry_run,
            rules: rules?,
        })
    }
}

impl PolicyRule {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        // An empty list would match everything: more than anyone means by it.
        let from = object.optional("from", |field| field.list_of_some(Caller::read));
        let ports = object.optional("ports", |field| field.list_of_some(Field::label));
        let methods = object.optional("methods", |field| field.list_of_some(method));
        let paths = object.optional("paths", |field| field.list_of_some(path_pattern));
        let when = object.optional("when", when);
        object.finish();
        Some(Self {
            from: from.unwrap_or_default(),
            ports: ports.unwrap_or_default(),
            methods: methods.unwrap_or_default(),
            paths: paths.unwrap_or_default(),
            when: when.unwrap_or_default(),
        })
    }

    /// Whether it looks at requests, which a tcp port does not have.
    pub fn needs_requests(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.when.is_empty())
    }
}

impl Caller {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.clone().object()?;
        let service = object.optional("service", |field| {
            field.checked(|text| crate::reader::service_from("default", text).map(|_| text.to_owned()))
        });
        let namespace = object.optional("namespace", Field::name);
        let trust_domain = object.optional("trustDomain", crate::federation::trust_domain);
        if !["service", "namespace", "trustDomain"].iter().any(|name| object.has(name)) {
            object.refuse("names nobody; want `service` or `namespace`");
        }
        // From elsewhere the policy's own namespace means nothing.
        if trust_domain.is_some()
            && namespace.is_none()
            && service.as_ref().is_some_and(|service| !service.contains('.'))
        {
            object.refuse("names a service of another mesh without its namespace; want `service: web.shop`");
        }
        if namespace.is_some() && service.as_ref().is_some_and(|service| service.contains('.')) {
            object.refuse(
                "names two namespaces; want `service: web.shop` or `{service: web, namespace: shop}`",
            );
        }
        object.finish();
        (service.is_some() || namespace.is_some() || trust_domain.is_some()).then_some(Self {
            service,
            namespace,
            trust_domain,
        })
    }
}

/// A method, in upper case as requests carry it.
pub(crate) fn method(field: Field<'_>) -> Option<String> {
    field.checked(|text| {
        let upper = text.to_ascii_uppercase();
        match header_name(text) {
            Err(_) => Err("is not a method, such as GET".to_owned()),
            Ok(_) if upper != text => Err(format!("is not a method; methods are upper case: {upper}")),
            Ok(_) => Ok(upper),
        }
    })
}

fn when(field: Field<'_>) -> Option<BTreeMap<String, Vec<String>>> {
    field.map(condition_key, |field| field.list_of_some(condition_value))
}

/// The header that a condition's key names.
pub fn condition_header(key: &str) -> Option<String> {
    header_name(key.strip_prefix("request.headers[")?.strip_suffix(']')?).ok()
}

fn condition_key(key: &str) -> Result<(), String> {
    if key.starts_with("jwt") {
        return Err("is not supported yet: tokens (JWT) are not checked; leave it out".to_owned());
    }
    match condition_header(key) {
        Some(_) => Ok(()),
        None => Err("is not a condition; want `request.headers[NAME]`".to_owned()),
    }
}

fn condition_value(field: Field<'_>) -> Option<String> {
    let text = match &field.node.value {
        Value::Text(text) => text.clone(),
        _ => return field.text(),
    };
    let inner = text.strip_prefix('*').unwrap_or(&text);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    let both_ends = text.len() > 1 && text.starts_with('*') && text.ends_with('*');
    if text.is_empty() || inner.contains('*') || both_ends {
        field.refuse(format!("{text:?} is not a value; want a text, `begin*`, `*end`, or `*` for any"));
        return None;
    }
    Some(text)
}
