//! Envoy's protobufs to the model.
//!
//! Each function takes what the model carries out of its message; what is then left in it and is
//! not the default is not supported. So a field that nobody thought of is refused, never
//! overlooked. Three kinds of fields do not count:
//!
//! - those that only affect what is observed (statistics, traces, log filters) and tuning that
//!   changes no outcome: accepted, and listed in [`Decoded::ignored`];
//! - those set to what a Pillion proxy does anyway;
//! - protobuf fields unknown to this version of Envoy's API, as in Envoy.
//!
//! A path is written as Envoy's documentation writes it, from the resource:
//! `filter_chains[0].filters[1].typed_config.http_filters[0].typed_config.rules`.

mod balancing;
mod cluster;
mod context;
mod endpoint;
mod filters;
mod health_check;
mod http;
mod internal_redirect;
mod listener;
mod local_reply;
mod log_filter;
mod matcher;
mod metadata;
mod policy;
mod rate_limit;
mod rbac;
mod route;
mod secret;
mod service;
mod source;
mod subset;
mod tls;
mod upstream;

use std::fmt;

use pillion_model::cluster::Cluster;
use pillion_model::endpoint::LoadAssignment;
use pillion_model::listener::Listener;
use pillion_model::mesh::MeshService;
use pillion_model::route::RouteConfiguration;
use prost::Message;

pub(crate) use cluster::DNS_REFRESH;
pub(crate) use context::{Context, ignored, was_set};
pub use secret::{Secret, SecretValue};
pub use source::{ConfigSource, FileSource, Reference, Source};

/// A decoded resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded<T> {
    /// The resource.
    pub value: T,
    /// Paths of fields that were set and have no effect here: none touches security or traffic.
    pub ignored: Vec<String>,
    /// Other resources that it names, and who has them.
    pub references: Vec<Reference>,
}

/// Why a resource is refused: everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DecodeError {
    /// One for each field, in the order of the resource.
    pub problems: Vec<Problem>,
}

/// One field that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, from the resource on; empty: the resource as a whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.reason),
            path => write!(f, "{path}: {}", self.reason),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Decodes a listener (LDS).
///
/// # Errors
///
/// Every field that is not valid or not supported, by path.
pub fn decode_listener(bytes: &[u8]) -> Result<Decoded<Listener>, DecodeError> {
    decode(bytes, listener::listener)
}

/// Decodes a cluster (CDS).
///
/// # Errors
///
/// As [`decode_listener`].
pub fn decode_cluster(bytes: &[u8]) -> Result<Decoded<Cluster>, DecodeError> {
    decode(bytes, cluster::cluster)
}

/// Decodes a route configuration (RDS).
///
/// # Errors
///
/// As [`decode_listener`].
pub fn decode_routes(bytes: &[u8]) -> Result<Decoded<RouteConfiguration>, DecodeError> {
    decode(bytes, route::configuration)
}

/// Decodes the endpoints of a cluster (EDS).
///
/// # Errors
///
/// As [`decode_listener`].
pub fn decode_endpoints(bytes: &[u8]) -> Result<Decoded<LoadAssignment>, DecodeError> {
    decode(bytes, endpoint::dialable)
}

/// Decodes a secret (SDS).
///
/// # Errors
///
/// As [`decode_listener`].
pub fn decode_secret(bytes: &[u8]) -> Result<Decoded<Secret>, DecodeError> {
    decode(bytes, secret::secret)
}

/// Decodes a service.
///
/// # Errors
///
/// As [`decode_listener`].
pub fn decode_service(bytes: &[u8]) -> Result<Decoded<MeshService>, DecodeError> {
    let mut context = Context::default();
    let service = match crate::mesh::MeshService::decode(bytes) {
        Ok(message) => service::service(&mut context, message),
        Err(error) => {
            context.refuse(format!("cannot be read as a MeshService: {error}"));
            None
        }
    };
    match service {
        Some(service) => context.finish(service),
        None => Err(context.into_error()),
    }
}

fn decode<M: Message + Default, T>(
    bytes: &[u8],
    read: impl FnOnce(&mut Context, M) -> T,
) -> Result<Decoded<T>, DecodeError> {
    let mut context = Context::default();
    match M::decode(bytes) {
        Ok(message) => {
            let value = read(&mut context, message);
            context.finish(value)
        }
        Err(error) => {
            context.refuse(format!("cannot be read as protobuf: {error}"));
            Err(context.into_error())
        }
    }
}

/// Decoding of messages that are parsed already, for bootstrap files.
pub(crate) mod messages {
    pub(crate) use super::cluster::cluster;
    pub(crate) use super::listener::{listener, socket_address};
    pub(crate) use super::secret::secret;
    pub(crate) use super::source::source;
}
