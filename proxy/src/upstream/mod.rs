//! The upstream side: clusters and their endpoints, choosing one, connections to it, and what is
//! known about how it behaves.
//!
//! [`Clusters`] is process-wide and takes configuration. [`Pools`] is one worker's; it owns that
//! worker's connections and makes one try at a time. Retrying is the caller's.

mod aggregate;
mod balance;
mod channel;
mod check;
mod cluster;
mod clusters;
mod connect;
mod control;
mod dns;
mod ewma;
mod failure;
mod host;
mod hosts;
mod http1;
mod http2;
mod io;
mod lease;
mod message;
mod open;
mod outlier;
mod pool;
mod relay;
mod send;
mod state;
mod subset;
mod tcp;
mod tls;
mod worker;

#[cfg(test)]
mod tests;

pub(crate) use channel::channel;
pub use cluster::{Cluster, RetryPermit};
pub use clusters::{ClusterMap, Clusters, Rejected};
pub use dns::Names;
pub use failure::{Cause, Failure, body_reset, grpc_to_http, reset_reason};
pub use host::HostRewritten;
pub use hosts::{Host, HostSet};
pub use http1::Http1Error;
pub use io::Io;
pub use lease::{UpstreamBody, UpstreamTunnel};
pub use outlier::OutlierStats;
pub use relay::{RelayEnd, Relayed, relay};
pub use send::{Attempt, Sent};
pub use state::{
    Address, ClusterState, ClusterStats, EndpointState, EndpointStats, Outcome, Priority, Usage,
};
pub use subset::Selection;
pub use tcp::TcpUpstream;
pub use tls::Transport;
pub(crate) use tls::check;
pub use worker::Pools;
