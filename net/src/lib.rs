//! What both servers need of the network: TLS identity and its verifier, listeners, the PROXY protocol, name lookup,
//! gRPC channels and servers over our own TLS, bootstrap by join token and other proofs, drain and readiness.
//!
//! Nothing here knows services, routes or resources; it does not resume TLS sessions, does not call
//! `getaddrinfo`, and starts no task that its caller does not hold.

pub mod attest;
pub mod bootstrap;
pub mod drain;
pub mod fetch;
pub mod grpc;
pub mod https;
pub mod identity;
pub mod listen;
pub mod proxy_protocol;
pub mod readiness;
pub mod resolve;
pub mod revoked;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod workload;
