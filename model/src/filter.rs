//! Settings of HTTP filters, and which of them a route switches on or off.

use std::collections::BTreeMap;

use crate::authz::AuthzOverride;
use crate::http::{CorsPolicy, FaultPolicy, HttpFilter};
use crate::jwt::JwtOverride;
use crate::matcher::HeaderMatcher;
use crate::rate_limit::LocalRateLimit;
use crate::rbac::Rbac;
use crate::route::HeaderChanges;

/// Which filter: what routes name when they have settings for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilterKind {
    /// Authorization.
    Rbac,
    /// Faults on purpose.
    Fault,
    /// Cross-origin requests.
    Cors,
    /// Header changes.
    HeaderMutation,
    /// Whole requests only.
    Buffer,
    /// Answers to health checks.
    HealthCheck,
    /// Limits of this proxy.
    LocalRateLimit,
    /// JSON Web Tokens.
    JwtAuthn,
    /// A server that says whether requests may pass.
    ExtAuthz,
}

impl FilterKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Rbac,
        Self::Fault,
        Self::Cors,
        Self::HeaderMutation,
        Self::Buffer,
        Self::HealthCheck,
        Self::LocalRateLimit,
        Self::JwtAuthn,
        Self::ExtAuthz,
    ];
}

impl HttpFilter {
    /// Which filter this is; `None`: the router, which nothing can switch off.
    pub fn kind(&self) -> Option<FilterKind> {
        Some(match self {
            Self::Router { .. } => return None,
            Self::Rbac { .. } => FilterKind::Rbac,
            Self::Fault(_) => FilterKind::Fault,
            Self::Cors => FilterKind::Cors,
            Self::HeaderMutation(_) => FilterKind::HeaderMutation,
            Self::Buffer { .. } => FilterKind::Buffer,
            Self::HealthCheck(_) => FilterKind::HealthCheck,
            Self::LocalRateLimit(_) => FilterKind::LocalRateLimit,
            Self::JwtAuthn(_) => FilterKind::JwtAuthn,
            Self::ExtAuthz(_) => FilterKind::ExtAuthz,
            Self::OffByDefault(inner) => return inner.kind(),
        })
    }
}

/// Settings of HTTP filters at a route configuration, virtual host, route or weighted cluster. Envoy:
/// `typed_per_filter_config`. Settings of a filter also switch it on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterOverrides {
    /// Replaces the RBAC filter's rules; `Some(None)` switches them off.
    pub rbac: Option<Option<Rbac>>,
    /// Replaces the fault filter's settings.
    pub fault: Option<FaultPolicy>,
    /// CORS policy.
    pub cors: Option<CorsPolicy>,
    /// Header changes after the filter's own, in their order.
    pub header_mutation: Option<HeaderChanges>,
    /// Replaces the buffer filter's limit in bytes; `Some(None)`: bodies are not held.
    pub buffer: Option<Option<u32>>,
    /// Replaces the rate limit filter's settings.
    pub local_rate_limit: Option<Box<LocalRateLimit>>,
    /// Which token is needed.
    pub jwt: Option<JwtOverride>,
    /// Whether and how a server is asked.
    pub authz: Option<AuthzOverride>,
    /// Filters without settings here that are switched on or off.
    pub switched: BTreeMap<FilterKind, bool>,
}

impl FilterOverrides {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether `kind` is switched on or off here; `None`: nothing is said of it.
    pub fn switches(&self, kind: FilterKind) -> Option<bool> {
        let configured = match kind {
            FilterKind::Rbac => self.rbac.is_some(),
            FilterKind::Fault => self.fault.is_some(),
            FilterKind::Cors => self.cors.is_some(),
            FilterKind::HeaderMutation => self.header_mutation.is_some(),
            FilterKind::Buffer => self.buffer.is_some(),
            FilterKind::HealthCheck => false,
            FilterKind::LocalRateLimit => self.local_rate_limit.is_some(),
            FilterKind::JwtAuthn => self.jwt.is_some(),
            FilterKind::ExtAuthz => self.authz.is_some(),
        };
        self.switched.get(&kind).copied().or_else(|| configured.then_some(true))
    }
}

/// Changes headers. Envoy: `HeaderMutation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMutation {
    /// In their order: removals are not brought forward.
    pub changes: HeaderChanges,
    /// A route's changes come after those of its virtual host instead of before.
    pub most_specific_wins: bool,
}

/// Answers health checks. Envoy: `HealthCheck`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthCheckFilter {
    /// Health checks are sent on, and answered here only while this proxy is told to fail them.
    pub pass_through: bool,
    /// What a health check is: all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Clusters of which this percentage has to be healthy.
    pub min_healthy: BTreeMap<String, u32>,
}
