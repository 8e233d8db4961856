//! Aggregated discovery (ADS), both variants: what a server offers and how it reaches a client.
//!
//! [`View`] is what one node may see at one moment; [`Source`] admits nodes, and hands each of them a
//! [`Feed`] of views. The rules of the protocol are state machines without I/O.

pub mod client;
mod node;
pub mod server;
mod service;
mod view;
mod warming;

pub use node::{NodeInfo, PILLION_USER_AGENT};
pub use service::{AdsService, Load, LoadReports, ProxyStatus, StatusService, Totals, Variant};
pub use view::{Encoded, Feed, PeerId, Source, View};
