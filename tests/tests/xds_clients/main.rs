//! Clients of xDS that are not ours join the mesh: Envoys of two versions.

mod envoy;
