//! The server's side of one ADS stream, without I/O: fed with requests and views, asked for the
//! next response.
//!
//! A stream holds only what the client was told (name and fingerprint of the version) and flags
//! for what is due; a response is built when the transport can take it. So a slow client costs its
//! own subscription and always gets the present state, never a queue of past ones.
//!
//! Rules common to both variants:
//!
//! - Types are pushed in the order of [`rank`](crate::type_url::rank): make before break. News of
//!   listeners and routes waits until clusters and endpoints that were sent are acknowledged and the
//!   client was told the endpoints of new clusters, for at most [`HOLD`]: an Envoy acknowledges clusters
//!   when they are warm, and fails requests to those that are not.
//! - Clusters and endpoints that went away go last: when listeners and routes are acknowledged, or not
//!   answered within [`HOLD`]. As long as a listener or route is refused, the client goes on with the one
//!   before, and nothing that this may use is taken away.
//! - One response per type is in flight. Changes in the meantime are one response later. Answers
//!   to new subscriptions do not wait.
//! - A refused (NACKed) resource is not sent again until it changes or the client asks again.

mod delta;
#[cfg(test)]
mod fixture;
mod order;
mod response;
#[cfg(test)]
mod simulation;
mod sotw;
#[cfg(test)]
mod tests;
mod track;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::time::Instant;

pub use delta::DeltaStream;
pub use sotw::SotwStream;
pub use track::{ResourceState, ResourceStatus, TypeStatus};

use super::View;

/// How long news of listeners and routes waits for clusters and endpoints, and what is gone for the ACK
/// of listeners and routes.
pub const HOLD: Duration = Duration::from_secs(5);

/// Bounds of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Names subscribed to on one stream, of all types together.
    pub names: usize,
    /// Bytes of one name.
    pub name_bytes: usize,
    /// Resource types on one stream.
    pub types: usize,
    /// A response is closed when it has reached this many bytes and goes on in a second one, where
    /// the protocol allows it (not for listeners and clusters in the state-of-the-world variant).
    /// Below the 4 MiB that gRPC clients accept unless told otherwise.
    pub response_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: 100_000, name_bytes: 1024, types: 32, response_bytes: 3 << 20 }
    }
}

/// What a stream needs to know beside its requests.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Bounds.
    pub limits: Limits,
    /// Named in every response: which registry answers.
    pub control_plane: String,
    /// Whether endpoints are sent again after their cluster was (re)announced, which a client
    /// needs that warms clusters (Envoy, gRPC); our own sidecar keeps them by name.
    pub endpoints_follow_clusters: bool,
}

/// Why a stream ends: the client's request breaks a bound or the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A bound is reached.
    #[error("{what}: got {got}, want at most {limit}")]
    Limit {
        /// What is too many or too long.
        what: &'static str,
        /// The client's number.
        got: usize,
        /// The bound.
        limit: usize,
    },
    /// `type_url` is empty: on an aggregated stream it says what is asked for.
    #[error("type_url is empty: an aggregated stream needs it in every request")]
    NoType,
}

/// One variant of the protocol on one stream.
pub trait Machine: Debug + Send + 'static {
    /// What the client sends.
    type Request: Send + 'static;
    /// What it gets.
    type Response: Send;

    /// A stream of which nothing is known yet.
    fn new(options: StreamOptions) -> Self;

    /// The node in a request; only the first of a stream has to have one.
    fn node(request: &Self::Request) -> Option<&Node>;

    /// Takes a request in: subscriptions, ACK or NACK.
    ///
    /// # Errors
    ///
    /// [`Refused`]: the stream has to end.
    fn on_request(&mut self, request: Self::Request, view: &dyn View) -> Result<(), Refused>;

    /// A type whose names asked for are not what they were at the last call, and all of them; `None` when
    /// there is none left.
    fn asked_otherwise(&mut self) -> Option<(&str, &BTreeSet<Arc<str>>)>;

    /// The view may have been replaced by `view`.
    fn on_view(&mut self, view: &dyn View);

    /// The next response due, if any. To be called until it gives none, always with the view last
    /// given to [`Self::on_view`].
    fn next(&mut self, view: &dyn View, now: Instant) -> Option<Self::Response>;

    /// When to call [`Self::next`] again although nothing happened: a hold ends.
    fn wake_at(&self) -> Option<Instant>;

    /// What the stream has done, by type.
    fn status(&self) -> Vec<TypeStatus>;

    /// What the client was told or asks for, resource by resource.
    fn resources(&self) -> Vec<ResourceStatus>;
}
