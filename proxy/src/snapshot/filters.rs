//! Compiled HTTP filters, and what routes say of them.

use std::sync::Arc;

use http::HeaderName;
use pillion_model::authz::AuthzOverride;
use pillion_model::filter::{FilterKind, FilterOverrides, HealthCheckFilter};
use pillion_model::http::{CorsPolicy, FaultPolicy, HttpFilter};
use pillion_model::jwt::JwtOverride;
use pillion_model::rate_limit::LocalRateLimit;
use pillion_model::rbac::Rbac;

use crate::filters::ext_authz::Authz;
use crate::filters::jwt::Jwt;
use crate::filters::local_rate_limit::Limit;
use crate::filters::{fault, rbac};
use crate::headers::changes::Changes;

/// One HTTP filter before the router.
pub(crate) struct Filter {
    pub(crate) kind: FilterKind,
    /// Runs only where a route switches it on.
    off_by_default: bool,
    pub(crate) work: Work,
}

/// What a filter does.
pub(crate) enum Work {
    Rbac { rules: Option<Rbac>, shadow_rules: Option<Rbac>, counts: Arc<rbac::Counts> },
    Fault { policy: FaultPolicy, counts: Arc<fault::Counts> },
    Cors,
    HeaderMutation { changes: Changes, most_specific_wins: bool },
    Buffer { bytes_max: u32 },
    HealthCheck(HealthCheckFilter),
    LocalRateLimit(Arc<Limit>),
    Jwt(Arc<Jwt>),
    ExtAuthz(Arc<Authz>),
}

impl Filter {
    /// Compiles `filter`; what it has counted so far is taken from `old`, if that is the same.
    pub(super) fn compile(filter: &HttpFilter, old: Option<&Self>) -> Result<Self, String> {
        let kind = filter.kind().ok_or("the router has to be the last HTTP filter")?;
        let (off_by_default, filter) = match filter {
            HttpFilter::OffByDefault(inner) => (true, &**inner),
            filter => (false, filter),
        };
        let work = match filter {
            HttpFilter::Router { .. } | HttpFilter::OffByDefault(_) => {
                return Err("a filter cannot be switched off twice".to_owned());
            }
            HttpFilter::Rbac { rules, shadow_rules } => Work::Rbac {
                rules: rules.clone(),
                shadow_rules: shadow_rules.clone(),
                counts: match old.map(|old| &old.work) {
                    Some(Work::Rbac { counts, .. }) => Arc::clone(counts),
                    _ => Arc::default(),
                },
            },
            HttpFilter::Fault(policy) => Work::Fault {
                policy: policy.clone(),
                counts: match old.map(|old| &old.work) {
                    Some(Work::Fault { counts, .. }) => Arc::clone(counts),
                    _ => Arc::default(),
                },
            },
            HttpFilter::Cors => Work::Cors,
            HttpFilter::HeaderMutation(mutation) => Work::HeaderMutation {
                changes: Changes::in_order(&mutation.changes)?,
                most_specific_wins: mutation.most_specific_wins,
            },
            HttpFilter::Buffer { bytes_max } => Work::Buffer { bytes_max: *bytes_max },
            HttpFilter::HealthCheck(filter) => Work::HealthCheck(filter.clone()),
            HttpFilter::LocalRateLimit(settings) => {
                let old = old.and_then(|old| match &old.work {
                    Work::LocalRateLimit(limit) => Some(limit),
                    _ => None,
                });
                Work::LocalRateLimit(limit(settings, old)?)
            }
            HttpFilter::ExtAuthz(settings) => Work::ExtAuthz(match old.map(|old| &old.work) {
                Some(Work::ExtAuthz(old)) if old.settings == **settings => Arc::clone(old),
                _ => Arc::new(Authz::compile(settings)?),
            }),
            HttpFilter::JwtAuthn(settings) => Work::Jwt(match old.map(|old| &old.work) {
                Some(Work::Jwt(old)) if old.settings == **settings => Arc::clone(old),
                _ => Arc::new(Jwt::compile(settings)?),
            }),
        };
        Ok(Self { kind, off_by_default, work })
    }

    /// Whether it runs, as far as `routes` decide.
    pub(crate) fn is_on(&self, routes: Switches) -> bool {
        routes.of(self.kind).unwrap_or(!self.off_by_default)
    }

    /// Whether it has something to do with answers.
    pub(crate) fn answers(&self) -> bool {
        matches!(
            self.work,
            Work::HeaderMutation { .. } | Work::HealthCheck(_) | Work::LocalRateLimit(_) | Work::ExtAuthz(_)
        )
    }

    /// Request headers that it reads when there is an answer.
    pub(super) fn read_by_answers(&self) -> impl Iterator<Item = &HeaderName> {
        let changes = match &self.work {
            Work::HeaderMutation { changes, .. } => Some(changes),
            Work::LocalRateLimit(limit) => Some(&limit.changes),
            _ => None,
        };
        changes.into_iter().flat_map(Changes::request_headers)
    }
}

fn limit(settings: &LocalRateLimit, old: Option<&Arc<Limit>>) -> Result<Arc<Limit>, String> {
    match old {
        Some(old) if old.settings == *settings => Ok(Arc::clone(old)),
        _ => Limit::compile(settings).map(Arc::new),
    }
}

/// Which filters routes switch on and off: two bits for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    said: u16,
    on: u16,
}

impl Switches {
    fn of(self, kind: FilterKind) -> Option<bool> {
        let bit = 1 << kind as u16;
        (self.said & bit != 0).then_some(self.on & bit != 0)
    }

    /// What `inner` says, and of what it says nothing, this.
    pub(crate) fn under(self, inner: Self) -> Self {
        Self { said: self.said | inner.said, on: (self.on & !inner.said) | (inner.on & inner.said) }
    }
}

/// Compiled [`FilterOverrides`].
pub(crate) struct RouteFilters {
    settings: FilterOverrides,
    pub(crate) switches: Switches,
    mutation: Option<Changes>,
    limit: Option<Arc<Limit>>,
}

impl RouteFilters {
    /// Compiles; `None` if nothing is said. Counts are taken from `old`, if it is the same.
    pub(super) fn compile(
        settings: &FilterOverrides,
        old: Option<&Self>,
    ) -> Result<Option<Box<Self>>, String> {
        if settings.is_empty() {
            return Ok(None);
        }
        let mut switches = Switches::default();
        for kind in FilterKind::ALL {
            if let Some(on) = settings.switches(kind) {
                switches.said |= 1 << kind as u16;
                switches.on |= u16::from(on) << kind as u16;
            }
        }
        let old_limit = old.and_then(|old| old.limit.as_ref());
        Ok(Some(Box::new(Self {
            switches,
            mutation: settings.header_mutation.as_ref().map(Changes::in_order).transpose()?,
            limit: settings.local_rate_limit.as_ref().map(|given| limit(given, old_limit)).transpose()?,
            settings: settings.clone(),
        })))
    }

    /// The limit that stands here.
    pub(super) fn limit(&self) -> Option<&Arc<Limit>> {
        self.limit.as_ref()
    }

    /// Request headers that filters read when there is an answer.
    pub(super) fn read_by_answers(&self) -> impl Iterator<Item = &HeaderName> {
        let limit = self.limit.as_ref().map(|limit| &limit.changes);
        self.mutation.iter().chain(limit).flat_map(Changes::request_headers)
    }
}

/// What is said of filters for one request: by the weighted cluster, the route, its virtual host and
/// the route configuration.
#[derive(Clone, Copy)]
pub(crate) struct Overrides<'a>(pub(super) [Option<&'a RouteFilters>; 4]);

impl<'a> Overrides<'a> {
    fn levels(self) -> impl DoubleEndedIterator<Item = &'a RouteFilters> {
        self.0.into_iter().flatten()
    }

    fn first<T>(self, of: impl Fn(&'a RouteFilters) -> Option<T>) -> Option<T> {
        self.levels().find_map(of)
    }

    /// RBAC rules that replace the filter's: `Some(None)` switches them off.
    pub(crate) fn rbac(self) -> Option<Option<&'a Rbac>> {
        self.first(|level| level.settings.rbac.as_ref()).map(Option::as_ref)
    }

    /// The fault policy that replaces the filter's.
    pub(crate) fn fault(self) -> Option<&'a FaultPolicy> {
        self.first(|level| level.settings.fault.as_ref())
    }

    /// The CORS policies: what the first of them leaves out the next may say.
    pub(crate) fn cors(self) -> impl Iterator<Item = &'a CorsPolicy> + use<'a> {
        self.levels().filter_map(|level| level.settings.cors.as_ref())
    }

    /// Header changes in the order in which they are applied.
    pub(crate) fn mutations(self, most_specific_wins: bool) -> impl Iterator<Item = &'a Changes> {
        let mut order = self.0;
        if most_specific_wins {
            order.reverse();
        }
        order.into_iter().flatten().filter_map(|level| level.mutation.as_ref())
    }

    /// The longest body that replaces the filter's; `Some(None)`: bodies are not held.
    pub(crate) fn buffer(self) -> Option<Option<u32>> {
        self.first(|level| level.settings.buffer)
    }

    /// Whether and how a server is asked.
    pub(crate) fn authz(self) -> Option<&'a AuthzOverride> {
        self.first(|level| level.settings.authz.as_ref())
    }

    /// Which token is needed.
    pub(crate) fn jwt(self) -> Option<&'a JwtOverride> {
        self.first(|level| level.settings.jwt.as_ref())
    }

    /// The limit that replaces the filter's.
    pub(crate) fn local_rate_limit(self) -> Option<&'a Arc<Limit>> {
        self.first(|level| level.limit.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_further_in_counts() {
        let switch = |on| {
            let switched = [(FilterKind::Buffer, on)].into();
            let settings = FilterOverrides { switched, ..FilterOverrides::default() };
            RouteFilters::compile(&settings, None).unwrap().unwrap().switches
        };
        let nothing = Switches::default();
        for (outer, inner, want) in [
            (nothing, nothing, None),
            (switch(true), nothing, Some(true)),
            (switch(true), switch(false), Some(false)),
            (switch(false), switch(true), Some(true)),
            (nothing, switch(false), Some(false)),
        ] {
            assert_eq!(outer.under(inner).of(FilterKind::Buffer), want);
            assert_eq!(outer.under(inner).of(FilterKind::Rbac), None);
        }
    }
}
