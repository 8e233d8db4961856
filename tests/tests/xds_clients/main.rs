//! Clients of xDS that are not ours join the mesh: Envoys of two versions, and gRPC without a proxy.

mod envoy;
mod grpc;
mod reflection;
mod status;
