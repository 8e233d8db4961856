//! Everything between the socket and the request: accepting, sniffing, TLS, HTTP connections.

mod activity;
mod connection;
mod detect;
mod frames;
mod http;
mod http1;
mod io;
mod linger;
mod rarely;
mod tcp;
mod tls;
mod tunnel;

pub(crate) use connection::{Accepted, Connection, serve, serve_tunnelled};
pub(crate) use http::serve_http;
pub(crate) use http1::Http1Body;
pub(crate) use rarely::Rarely;
pub(crate) use tcp::{Copied, copy_both};
pub(crate) use tunnel::ClientTunnel;
