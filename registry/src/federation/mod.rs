//! Other meshes: whose identities are known for what they are, and whose services are called here.
//!
//! Two registries exchange trust bundles over SPIFFE bundle endpoints, and what they export to each other
//! over mutual TLS by these bundles. Trust stays apart: a bundle vouches for names of its own trust domain
//! and for nothing else, and is used only where a service is exported or imported. What is fetched and
//! found wanting changes nothing: the last good bundle stays in force, a line is logged, and a counter
//! rises.

mod bundle;
mod exports;
mod keep;
mod publish;
mod status;
#[cfg(test)]
mod tests;

pub use bundle::{Bundle, BundleError};
pub use exports::{ExportedEndpoint, ExportedPort, ExportedService, Exports, Imports, exports};
pub use keep::Federations;
pub use publish::{Publishing, own_bundle, router};
pub use status::FederationStatus;
