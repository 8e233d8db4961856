//! The data plane: the proxy that runs beside each instance, or at the edge.

pub mod body;
pub mod upstream;
