//! gRPC over our own connections: channels that dial addresses over our TLS, and a server loop that
//! serves an axum router (tonic's routes) over our TLS and tells it who the peer is.

mod client;
mod connections;
mod server;
mod signal;
mod stall;
#[cfg(test)]
mod tests;

pub use client::{ConnectError, Dialer, Security, connect};
pub use server::{Incoming, Serve, ServerSecurity, require_peer};
