//! A compiled HTTP connection manager.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use pillion_model::http::{HttpConnectionManager, HttpFilter, RouteSource};
use pillion_model::path::Normalization;

use super::local_replies::LocalReplies;
use super::{Compiler, Filter, RouteConfig, Snapshot};
use crate::access_log::AccessLogger;
use crate::metrics::Symbol;
use crate::upstream::ClusterMap;

/// A compiled [`HttpConnectionManager`].
pub(crate) struct Hcm {
    pub(crate) config: HttpConnectionManager,
    /// Its statistics' prefix.
    pub(crate) symbol: Symbol,
    pub(crate) routes: Routes,
    pub(crate) filters: Vec<Filter>,
    /// Whether a filter has something to do with answers.
    pub(crate) filters_answer: bool,
    pub(crate) suppress_envoy_headers: bool,
    pub(crate) local_replies: Option<LocalReplies>,
    pub(crate) access_logs: Vec<Arc<AccessLogger>>,
    /// Request headers that access logs show and filters need for answers.
    pub(crate) kept_request_headers: Vec<HeaderName>,
    pub(crate) logged_response_headers: Vec<HeaderName>,
    pub(crate) server_name: HeaderValue,
    pub(crate) path_rules: Normalization,
    /// Time for a request's head; never off.
    pub(crate) headers_timeout: Duration,
}

/// Where an [`Hcm`] finds its routes.
pub(crate) enum Routes {
    /// Its own.
    Inline(Arc<RouteConfig>),
    /// In the snapshot, by name.
    Named(String),
    /// Those of the service the request's host names.
    ByHost,
}

/// Time for a request's head where none is configured. Envoy has no limit.
const HEADERS_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

impl Hcm {
    /// Compiles `config`.
    pub(super) fn compile(
        compiler: &Compiler<'_>,
        config: &HttpConnectionManager,
        clusters: &ClusterMap,
        old: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, String> {
        let routes = match &config.routes {
            RouteSource::Rds(name) if name == crate::outbound::BY_HOST => Routes::ByHost,
            RouteSource::Rds(name) => Routes::Named(name.clone()),
            RouteSource::Inline(routes) => {
                let old = old.and_then(|old| match &old.routes {
                    Routes::Inline(routes) => Some(routes),
                    Routes::Named(_) | Routes::ByHost => None,
                });
                Routes::Inline(RouteConfig::compile(compiler, routes, clusters, old)?)
            }
        };
        let Some((HttpFilter::Router { suppress_envoy_headers }, filters)) = config.filters.split_last()
        else {
            return Err("the last HTTP filter has to be the router".to_owned());
        };
        let filters = filters
            .iter()
            .enumerate()
            .map(|(index, filter)| Filter::compile(filter, old.and_then(|old| old.filters.get(index))))
            .collect::<Result<Vec<_>, _>>()?;
        let access_logs = AccessLogger::compile_all(&config.access_logs, compiler.writers)?;
        let local_replies = config.local_replies.as_ref().map(LocalReplies::compile).transpose()?;
        let server_name = HeaderValue::from_str(&config.server_name)
            .map_err(|_| format!("server_name `{}` is not a header value", config.server_name))?;
        Ok(Arc::new(Self {
            symbol: compiler.symbols.intern(&config.stat_prefix),
            routes,
            suppress_envoy_headers: *suppress_envoy_headers,
            kept_request_headers: access_logs
                .iter()
                .flat_map(|log| log.request_headers())
                .chain(filters.iter().flat_map(Filter::read_by_answers).cloned())
                .chain(local_replies.iter().flat_map(LocalReplies::request_headers))
                .collect(),
            logged_response_headers: access_logs.iter().flat_map(|log| log.response_headers()).collect(),
            access_logs,
            local_replies,
            filters_answer: filters.iter().any(Filter::answers),
            filters,
            server_name,
            path_rules: Normalization {
                dots: config.normalize_path,
                merge_slashes: config.merge_slashes,
                escaped_slashes: config.escaped_slashes,
            },
            headers_timeout: config.request_headers_timeout.unwrap_or(HEADERS_TIMEOUT_DEFAULT),
            config: config.clone(),
        }))
    }

    /// The route configuration of the moment.
    pub(crate) fn route_config<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Arc<RouteConfig>> {
        match &self.routes {
            Routes::Inline(routes) => Some(routes),
            Routes::Named(name) => snapshot.routes.get(name),
            Routes::ByHost => None,
        }
    }
}
