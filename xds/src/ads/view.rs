//! What the server offers: encoded resources, the view of one node, and where views come from.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use pillion_model::name::SpiffeId;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_128;

use super::NodeInfo;

/// One resource as it goes on the wire: encoded once, shared by every subscriber.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The resource's name.
    pub name: String,
    /// Hash of the content: the same on every registry, so that a client that moves from one to
    /// another downloads nothing again.
    pub version: String,
    /// The resource.
    pub body: Any,
}

impl Encoded {
    /// A resource of type `type_url` with the encoded message `value`; its version is the hash of
    /// `value`.
    #[must_use]
    pub fn new(type_url: &str, name: impl Into<String>, value: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            version: format!("{:032x}", xxh3_128(&value)),
            body: Any { type_url: type_url.to_owned(), value },
        }
    }
}

/// Everything one node may see, at one moment. Immutable: a change is a new view.
pub trait View: Send + Sync {
    /// What a wildcard subscription of the type gets. Names are unique.
    fn all(&self, type_url: &str) -> Vec<Arc<Encoded>>;

    /// The resource of that name, if it exists for this node; may be one that is not in
    /// [`Self::all`].
    fn find(&self, type_url: &str, name: &str) -> Option<Arc<Encoded>>;

    /// A number that differs whenever anything of the type differs from the view before; a stream
    /// skips the types whose number is the same. `None`: unknown, the stream compares.
    fn revision(&self, type_url: &str) -> Option<u64> {
        let _ = type_url;
        None
    }
}

/// Where a server gets the views of its clients.
pub trait Source: Send + Sync + 'static {
    /// What a stream is told from.
    type Feed: Feed;

    /// Admits a node. The feed is dropped when the stream ends.
    ///
    /// `peer` is the identity proven by the client's certificate, if the connection has one.
    ///
    /// # Errors
    ///
    /// The status the stream ends with: `PERMISSION_DENIED` when the node is not the peer's,
    /// `INVALID_ARGUMENT` when it cannot be read.
    fn open(&self, node: &NodeInfo, peer: Option<&SpiffeId>) -> Result<Self::Feed, tonic::Status>;
}

/// The view of one node as it changes.
pub trait Feed: Send + 'static {
    /// The view as it is now. Streams do not keep it while they wait.
    fn view(&mut self) -> Arc<dyn View>;

    /// All that the stream asks for by name of one type. Of other names it need not be told.
    fn uses(&mut self, type_url: &str, names: &BTreeSet<Arc<str>>);

    /// Waits until something that the stream uses may not be as in the last view; `false`: the stream has
    /// to end, with `UNAVAILABLE`. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;
}

/// Every change is news for every stream.
impl Feed for watch::Receiver<Arc<dyn View>> {
    fn view(&mut self) -> Arc<dyn View> {
        Arc::clone(&self.borrow_and_update())
    }

    fn uses(&mut self, _type_url: &str, _names: &BTreeSet<Arc<str>>) {}

    async fn changed(&mut self) -> bool {
        Self::changed(self).await.is_ok()
    }
}

/// The identity of the connection's peer, put into the request's extensions by whoever accepted
/// the connection and checked the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId(pub SpiffeId);
