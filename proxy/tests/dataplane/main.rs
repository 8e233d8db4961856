//! The data plane from outside: real sockets, origins and clients by hyper, one process.

mod lifecycle;
mod outbound;
mod policy;
mod resilience;
mod routing;
mod streams;
mod support;
