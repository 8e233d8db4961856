//! `kind: Mesh`: settings of the whole mesh.

use std::time::Duration;

use pillion_model::name::{DEFAULT_DOMAIN, TrustDomain, check_label};
use schemars::JsonSchema;
use serde::Serialize;

use crate::DurationText;
use crate::reader::{Field, Object};
use crate::service::{HOUR, Mtls, NO_TIME, Retry};

/// Settings of the whole mesh. There is one; without it the defaults apply.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Mesh {
    /// Trust domain of all identities: `spiffe://<trustDomain>/ns/…`. Default `mesh.internal`.
    pub trust_domain: String,
    /// DNS zone of all names: `<service>.<namespace>.<zone>`. Default `mesh.internal`.
    pub zone: String,
    /// Mutual TLS where a service says nothing else. Default `strict`.
    pub mtls: Mtls,
    /// Who may call a service that has no allow policy. Default `allow`.
    pub authorization: Access,
    /// Whether destinations outside the mesh may be called. Default `allow`.
    pub egress: Access,
    /// For services and routes that say nothing else.
    pub defaults: Defaults,
}

/// Allow or deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// Allowed; for authorization: to every identity of the mesh.
    #[default]
    Allow,
    /// Denied unless a policy allows it.
    Deny,
}

/// For services and routes that say nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Defaults {
    /// Time for a whole answer; `0s`: no limit. Default `15s`, and no limit for gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// Time without a byte in either direction; `0s`: no limit. Default `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<DurationText>,
    /// Retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: DEFAULT_DOMAIN.to_owned(),
            zone: DEFAULT_DOMAIN.to_owned(),
            mtls: Mtls::default(),
            authorization: Access::default(),
            egress: Access::default(),
            defaults: Defaults::default(),
        }
    }
}

/// Name of the one Mesh resource.
pub(crate) const MESH_NAME: &str = "mesh";

impl Mesh {
    pub(crate) fn read(mut object: Object<'_>) -> Option<Self> {
        let default = Self::default();
        let trust_domain = object.optional("trustDomain", |field| {
            field.checked(|text| TrustDomain::parse(text).map(|domain| domain.as_str().to_owned()))
        });
        let zone = object.optional("zone", dns_name);
        let mtls = object.optional("mtls", Mtls::read);
        let authorization = object.optional("authorization", access);
        let egress = object.optional("egress", access);
        let defaults = object.optional("defaults", defaults);
        object.finish();
        Some(Self {
            trust_domain: trust_domain.unwrap_or(default.trust_domain),
            zone: zone.unwrap_or(default.zone),
            mtls: mtls.unwrap_or_default(),
            authorization: authorization.unwrap_or_default(),
            egress: egress.unwrap_or_default(),
            defaults: defaults.unwrap_or_default(),
        })
    }
}

fn access(field: Field<'_>) -> Option<Access> {
    field.choice(&[("allow", Access::Allow), ("deny", Access::Deny)])
}

fn defaults(field: Field<'_>) -> Option<Defaults> {
    let mut object = field.object()?;
    let defaults = Defaults {
        timeout: object.duration("timeout", NO_TIME..=HOUR),
        idle_timeout: object.duration("idleTimeout", NO_TIME..=HOUR * 24),
        retry: object.optional("retry", Retry::read),
    };
    object.finish();
    Some(defaults)
}

/// A DNS name: labels with dots between, lower case.
pub(crate) fn dns_name(field: Field<'_>) -> Option<String> {
    field.checked(|text| {
        if text.len() > 253 {
            return Err("is longer than 253 characters".to_owned());
        }
        match text.split('.').find_map(|label| check_label(label).err()) {
            None => Ok(text.to_owned()),
            Some(error) => Err(format!("is not a DNS name: a part of it {error}")),
        }
    })
}

/// Default time for a whole answer.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// Default time without a byte in either direction.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
