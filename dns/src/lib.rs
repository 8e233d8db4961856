//! DNS for the registry and the sidecar: one handler of `hickory_server` behind UDP and TCP, and before
//! it, over UDP, answers that are ready as bytes ([`Fast`]).
//!
//! Messages are read and written by `hickory_proto`. Who knows the answers implements [`Zone`].
//! Recursion and DNSSEC are not here; names that are not ours can be passed on with
//! [`forward::Forwarder`].

mod answer;
mod connections;
mod cookie;
mod encode;
mod fast;
pub mod forward;
mod handler;
mod limit;
mod name;
mod note;
mod question;
pub mod sample;
mod server;
mod stats;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod zone;

pub use answer::{Answer, Soa, address};
pub use fast::{Denial, Encoded, Fast, Plain, Ready, Records};
pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::rdata::{NS, PTR, SRV};
pub use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
pub use name::{AskedName, wire_name};
pub use note::{Note, Reason};
pub use question::{Question, Room, Transport};
pub use server::{Options, serve, serve_with};
pub use stats::{Count, Stats};
pub use zone::{Outcome, Reply, Zone};
