//! The data plane from outside: real sockets, origins and clients by hyper, one process.

mod routing;
mod support;
