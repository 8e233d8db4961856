//! Builders that start real processes on free ports and wait for conditions with deadlines.

pub mod app;
pub mod beats;
pub mod binary;
pub mod compose;
pub mod dns;
pub mod docker;
pub mod envoy;
pub mod etcd;
pub mod frames;
pub mod http;
pub mod load;
pub mod peer;
pub mod ports;
pub mod process;
pub mod registry;
pub mod sidecar;
pub mod tree;
pub mod wait;

pub use app::App;
pub use beats::Beats;
pub use binary::pillion;
pub use compose::Compose;
pub use docker::Docker;
pub use envoy::Envoy;
pub use etcd::Etcd;
pub use load::Load;
pub use peer::peer;
pub use process::Process;
pub use registry::Registry;
pub use sidecar::{Plan, Sidecar};
pub use wait::{DEADLINE, eventually};
