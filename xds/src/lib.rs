//! Model to Envoy protobufs and back; ADS server and client as state machines without I/O, plus
//! their gRPC transport; Pillion's own protos.

pub mod ads;
pub mod authz;
#[expect(deprecated, reason = "older configurations have the older forms of fields")]
pub mod bootstrap;
pub mod codec;
#[expect(deprecated, reason = "older configurations have the older forms of fields")]
pub mod decode;
pub mod encode;
pub mod json;
mod pb;
pub mod reflect;
pub mod type_url;

/// Pillion's own messages and services, generated from `proto/pillion/mesh/v1/mesh.proto`.
pub mod mesh {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::nursery,
        clippy::use_self,
        clippy::or_fun_call,
        reason = "generated code"
    )]
    include!("generated/pillion.mesh.v1.rs");
}

/// The part of the SPIFFE Workload API that a sidecar asks, generated from `proto/spiffe/workload.proto`.
pub mod spiffe {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::nursery,
        clippy::use_self,
        clippy::or_fun_call,
        reason = "generated code"
    )]
    include!("generated/spiffe.rs");
}
