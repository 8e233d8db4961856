//! The state without I/O, and the whole client against a real server.

pub(super) mod fixture;
mod server;
mod steps;
