//! Envoy's bootstrap files: reading static ones, writing what an Envoy of the mesh starts with.

mod dynamic;
mod generate;
mod read;
mod statics;

pub use dynamic::{Ads, Dynamic};
pub use generate::{BootstrapOptions, generate_bootstrap, sds_files};
pub use read::{Bootstrap, BootstrapError, Node, read_bootstrap};
pub use statics::to_static_bootstrap;
