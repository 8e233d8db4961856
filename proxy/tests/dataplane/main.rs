//! The data plane from outside: real sockets, origins and clients by hyper, one process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod lifecycle;
mod outbound;
mod policy;
mod resilience;
mod routing;
mod streams;
mod support;
