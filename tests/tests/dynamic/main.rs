//! Envoy's dynamic resources: the same control plane, or the same files, for a real Envoy and for
//! `pillion proxy --envoy-config`.

mod ads;
mod files;
mod model;
mod resources;
mod server;
mod side;
