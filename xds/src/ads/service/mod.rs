//! The gRPC server: Envoy's `AggregatedDiscoveryService` over a [`Source`].
//!
//! A stream is one future that the transport polls when it has room: no task, no queue. What a
//! slow client has not fetched is flags in its state machine.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{Stream, stream};
use pillion_model::name::SpiffeId;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Response, Status, Streaming};

use crate::ads::server::{DeltaStream, Limits, Machine, Refused, SotwStream, StreamOptions, TypeStatus};
use crate::ads::{Feed, NodeInfo, PeerId, Source};
use crate::type_url;

/// How long a new stream may stay silent.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest request taken: a reconnecting client lists every name and version it holds.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Serves both variants of ADS. Cheap to clone: clones share the list of connected proxies.
#[derive(Debug)]
pub struct AdsService<S> {
    source: Arc<S>,
    control_plane: String,
    limits: Limits,
    proxies: Arc<Proxies>,
}

/// Which variant of the protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world.
    Sotw,
    /// Incremental.
    Delta,
}

/// One connected stream.
#[derive(Clone, Debug)]
pub struct ProxyStatus {
    /// Who it says it is; the source has accepted it.
    pub node: NodeInfo,
    /// The identity its certificate proves.
    pub peer: Option<SpiffeId>,
    /// What it speaks.
    pub variant: Variant,
    /// When its first request came.
    pub since: SystemTime,
    /// What was sent and answered, by type.
    pub types: Vec<TypeStatus>,
}

/// Sums over all streams there ever were, of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Responses sent.
    pub pushes: u64,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// Requests with an outdated nonce.
    pub stale: u64,
}

impl<S> Clone for AdsService<S> {
    fn clone(&self) -> Self {
        Self {
            source: Arc::clone(&self.source),
            control_plane: self.control_plane.clone(),
            limits: self.limits,
            proxies: Arc::clone(&self.proxies),
        }
    }
}

impl<S: Source> AdsService<S> {
    /// A service over `source`; `control_plane` names this registry in every response.
    #[must_use]
    pub fn new(source: Arc<S>, control_plane: impl Into<String>, limits: Limits) -> Self {
        Self { source, control_plane: control_plane.into(), limits, proxies: Arc::default() }
    }

    /// The tonic service, with message limits set.
    #[must_use]
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// The streams connected now, oldest first.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.proxies.lock().streams.values().cloned().collect()
    }

    /// Sums since the start, by [`label`](crate::type_url::label) of the type.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<&'static str, Totals> {
        let inner = self.proxies.lock();
        let mut totals = inner.ended.clone();
        inner.streams.values().for_each(|stream| add_totals(&mut totals, &stream.types));
        totals
    }

    fn serve<M>(
        &self,
        variant: Variant,
        request: Request<Streaming<M::Request>>,
    ) -> Response<Responses<M::Response>>
    where
        M: Machine + 'static,
        M::Request: 'static,
    {
        let peer = request.extensions().get::<PeerId>().map(|peer| peer.0.clone());
        let opening = Opening { service: self.clone(), variant, peer, requests: request.into_inner() };
        let responses = stream::unfold(State::<S, M>::Opening(Box::new(opening)), State::step);
        Response::new(Box::pin(responses))
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<S: Source> AggregatedDiscoveryService for AdsService<S> {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.serve::<SotwStream>(Variant::Sotw, request))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.serve::<DeltaStream>(Variant::Delta, request))
    }
}

/// A stream before its first request, while it is served, and after.
enum State<S: Source, M: Machine> {
    Opening(Box<Opening<S, M::Request>>),
    Open(Box<Session<S::Feed, M>>),
    Ended,
}

struct Opening<S, R> {
    service: AdsService<S>,
    variant: Variant,
    peer: Option<SpiffeId>,
    requests: Streaming<R>,
}

impl<S: Source, M: Machine> State<S, M> {
    /// Waits for the next response, and for the room to send it by not being called before.
    async fn step(self) -> Option<(Result<M::Response, Status>, Self)> {
        let opened = match self {
            Self::Opening(opening) => opening.open::<M>().await,
            Self::Open(session) => Ok(Some(session)),
            Self::Ended => return None,
        };
        let next = match opened {
            Ok(Some(mut session)) => session.next().await.map(|response| response.map(|it| (it, session))),
            Ok(None) => Ok(None),
            Err(status) => Err(status),
        };
        match next {
            Ok(Some((response, session))) => Some((Ok(response), Self::Open(session))),
            Ok(None) => None,
            Err(status) => Some((Err(status), Self::Ended)),
        }
    }
}

impl<S: Source, R: Send> Opening<S, R> {
    async fn open<M: Machine<Request = R>>(mut self) -> Result<Option<Box<Session<S::Feed, M>>>, Status> {
        let Ok(first) = timeout(FIRST_REQUEST_TIMEOUT, self.requests.message()).await else {
            return Err(Status::deadline_exceeded("no request on a new stream"));
        };
        let Some(first) = first? else {
            return Ok(None);
        };
        let node =
            M::node(&first).ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
        let node = NodeInfo::from_proto(node);
        let feed = self.service.source.open(&node, self.peer.as_ref())?;
        let machine = M::new(StreamOptions {
            limits: self.service.limits,
            control_plane: self.service.control_plane.clone(),
            endpoints_follow_clusters: !node.is_pillion(),
        });
        let proxy = self.service.proxies.enter(node, self.peer, self.variant);
        let mut session = Box::new(Session { machine, requests: self.requests, feed, proxy });
        session.on_request(first)?;
        Ok(Some(session))
    }
}

/// An open stream.
struct Session<F, M: Machine> {
    machine: M,
    requests: Streaming<M::Request>,
    feed: F,
    proxy: ProxyGuard,
}

impl<F: Feed, M: Machine> Session<F, M> {
    /// The next response; `None` when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<M::Response>, Status> {
        loop {
            let view = self.feed.view();
            self.machine.on_view(&*view);
            if let Some(response) = self.machine.next(&*view, Instant::now()) {
                self.proxy.update(self.machine.status());
                return Ok(Some(response));
            }
            drop(view); // of the whole mesh, and old before long
            let wake_at = self.machine.wake_at();
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.on_request(request)?,
                    None => return Ok(None),
                },
                is_open = self.feed.changed() => if !is_open {
                    return Err(Status::unavailable("the registry has closed the stream, reconnect"));
                },
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
            }
        }
    }

    fn on_request(&mut self, request: M::Request) -> Result<(), Status> {
        let view = self.feed.view();
        self.machine.on_view(&*view);
        self.machine.on_request(request, &*view).map_err(|refused| match refused {
            Refused::Limit { .. } => Status::resource_exhausted(refused.to_string()),
            Refused::NoType => Status::invalid_argument(refused.to_string()),
        })?;
        while let Some((type_url, names)) = self.machine.asked_otherwise() {
            self.feed.uses(type_url, names);
        }
        self.proxy.update(self.machine.status());
        Ok(())
    }
}

/// The streams connected now, and what those that ended have done.
#[derive(Debug, Default)]
struct Proxies {
    next_id: AtomicU64,
    inner: Mutex<ProxiesInner>,
}

#[derive(Debug, Default)]
struct ProxiesInner {
    streams: BTreeMap<u64, ProxyStatus>,
    ended: BTreeMap<&'static str, Totals>,
}

impl Proxies {
    fn lock(&self) -> MutexGuard<'_, ProxiesInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, node: NodeInfo, peer: Option<SpiffeId>, variant: Variant) -> ProxyGuard {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let status = ProxyStatus { node, peer, variant, since: SystemTime::now(), types: Vec::new() };
        self.lock().streams.insert(id, status);
        ProxyGuard { proxies: Arc::clone(self), id }
    }
}

/// Lists a stream for as long as it lives.
#[derive(Debug)]
struct ProxyGuard {
    proxies: Arc<Proxies>,
    id: u64,
}

impl ProxyGuard {
    fn update(&self, types: Vec<TypeStatus>) {
        if let Some(stream) = self.proxies.lock().streams.get_mut(&self.id) {
            stream.types = types;
        }
    }
}

impl Drop for ProxyGuard {
    fn drop(&mut self) {
        let mut inner = self.proxies.lock();
        if let Some(stream) = inner.streams.remove(&self.id) {
            add_totals(&mut inner.ended, &stream.types);
        }
    }
}

fn add_totals(totals: &mut BTreeMap<&'static str, Totals>, types: &[TypeStatus]) {
    for kind in types {
        let total = totals.entry(type_url::label(&kind.type_url)).or_default();
        total.pushes += kind.pushes;
        total.acks += kind.acks;
        total.nacks += kind.nacks;
        total.stale += kind.stale;
    }
}
