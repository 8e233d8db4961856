//! The registry: which services and instances exist and how they are, told to everyone who asks.
//!
//! One direction: API calls, registration streams and silence become store commits; the store's
//! watch builds the one immutable view; DNS, the watch API and the control plane only read it.

pub mod api;
pub mod app;
pub mod attest;
pub mod audit;
pub mod ca;
pub mod catalog;
pub mod control;
pub mod dns;
pub mod explain;
pub mod federation;
pub mod lease;
pub mod metrics;
pub mod registration;
pub mod resolve;
pub mod resources;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod watch;
