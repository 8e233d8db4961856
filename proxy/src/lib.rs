//! The data plane: listeners, mutual TLS, routing, authorization, retries, metrics and admin.
//!
//! [`runtime::Runtime`] runs a number of worker threads, each with its own accept queue, timers and
//! upstream pools, and gives them [`model resources`](pillion_model::mesh::Resources) compiled into
//! one immutable [`snapshot`]. The life of a request is the list in `chain.rs`.

mod access_log;
pub mod admin;
pub mod body;
mod chain;
pub mod control;
mod downstream;
mod dynamic;
mod exchange;
mod filters;
mod flags;
mod headers;
mod http1;
mod local_reply;
mod metrics;
mod outbound;
mod overload;
mod record;
mod request;
mod response;
mod router;
pub mod runtime;
pub mod sidecar;
mod snapshot;
mod static_mode;
mod trust;
pub mod upstream;
mod worker;

pub use outbound::{Egress, Found, OnDemand, OutboundOptions};
pub use runtime::{Options, Published, Runtime, StartError};
pub use snapshot::Rejected;
pub use static_mode::{StaticError, StaticProxy, static_mode};
