//! Everything between the socket and the request: accepting, sniffing, TLS, HTTP connections.

mod activity;
mod connection;
mod detect;
mod frames;
mod guard;
mod http;
mod io;
mod linger;
mod tcp;
mod tls;

pub(crate) use connection::{Accepted, Connection, serve, serve_tunnelled};
pub(crate) use http::serve_http;
pub(crate) use tcp::{Copied, copy_both};
