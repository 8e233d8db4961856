//! Envoy as the oracle: one configuration, two proxies, the same requests, and what differs.
//!
//! A fixture is a file of `tests/parity/`. Nothing in it says what is right: Envoy is run beside
//! Pillion, and what it does is what is expected. Differences that are meant stand in one table of
//! `docs/deviations.md`, which is read here; a case that shows one names its row.

mod bootstrap;
mod chance;
mod client;
mod client_frames;
mod client_http2;
mod compare;
mod fixture;
mod http1;
mod origin;
mod origin_http2;
mod random;
mod report;
mod rows;
mod run;
mod seen;
mod side;
mod tls;

pub use random::{Decisions, What, decide};
pub use report::Summary;
pub use run::run_all;
pub use side::other_envoy;
