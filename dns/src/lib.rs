//! DNS for the registry and the sidecar: wire form, answers cut to size, and the UDP and TCP loops.
//!
//! Who knows the answers implements [`Zone`]. Recursion and DNSSEC are not here; names that are not
//! ours can be passed on with [`forward::Forwarder`].

pub mod forward;
pub mod name;
pub mod reply;
pub mod sample;
pub mod server;
#[cfg(test)]
mod tests;
pub mod wire;
mod zone;

pub use name::Name;
pub use reply::{Answer, Code, Data, Owner, Record, Soa};
pub use server::serve;
pub use wire::{Kind, Question, Transport};
pub use zone::{Outcome, Reply, Zone};
