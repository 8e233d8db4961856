//! Names, identities, the resolved model a proxy runs, and the pure decisions over it.
//!
//! Everything here is values in, values out: no I/O, no async, no clock, no global state. Time and
//! random draws are arguments. The request path and `pillion explain` call the same functions, so
//! what explain says is what the proxy does.
//!
//! The model is Envoy-shaped (listener, filter chain, route configuration, cluster, endpoint) and
//! every name is Envoy's where Envoy has one. Service, Subset and AuthorizationPolicy exist only in
//! `pillion-config` and in the registry's resolve step.

pub mod authz;
pub mod cluster;
pub mod endpoint;
pub mod filter;
pub mod health;
pub mod health_check;
pub mod http;
pub mod instance;
pub mod internal_redirect;
pub mod jwt;
pub mod listener;
pub mod log_filter;
pub mod matcher;
pub mod mesh;
pub mod metadata;
pub mod name;
pub mod path;
pub mod rate_limit;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod subset;
pub mod tls;
