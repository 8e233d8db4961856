//! What carrying a request costs: Pillion, Envoy, HAProxy and nginx with the same task, one after the
//! other in the same run.

pub mod configuration;
pub mod load;
mod mesh;
pub mod origin;
pub mod run;
pub mod server;
mod standing;
