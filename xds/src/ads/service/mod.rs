//! The gRPC server: Envoy's `AggregatedDiscoveryService` over a [`Source`].
//!
//! A stream is one future that the transport polls when it has room: no task, no queue. What a
//! slow client has not fetched is flags in its state machine.

mod load;
mod proxies;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

use crate::ads::server::{DeltaStream, Limits, Machine, Refused, SotwStream, StreamOptions};
use crate::ads::{Feed, NodeInfo, PeerId, Source};

pub use load::{Load, LoadReports};
use proxies::{Proxies, ProxyGuard};
pub use proxies::{ProxyStatus, Totals, Variant};
pub use status::StatusService;

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
        self.proxies.all()
    }

    /// How many streams are connected now.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.proxies.len()
    }

    /// Sums since the start, by [`label`](crate::type_url::label) of the type.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<&'static str, Totals> {
        self.proxies.totals()
    }

    fn serve<M>(
        &self,
        variant: Variant,
        request: Request<Streaming<M::Request>>,
    ) -> Response<Responses<M::Response>>
    where
        M: Machine,
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
        let machine = Arc::new(Mutex::new(M::new(StreamOptions {
            limits: self.service.limits,
            control_plane: self.service.control_plane.clone(),
            endpoints_follow_clusters: !node.is_pillion(),
        })));
        let proxy = self.service.proxies.enter(node, self.peer, self.variant, Arc::clone(&machine) as _);
        let mut session = Box::new(Session { machine, requests: self.requests, feed, _proxy: proxy });
        session.on_request(first)?;
        Ok(Some(session))
    }
}

/// An open stream.
struct Session<F, M: Machine> {
    /// Locked for moments: by the stream itself, and by whoever asks how far it got.
    machine: Arc<Mutex<M>>,
    requests: Streaming<M::Request>,
    feed: F,
    /// Lists the stream for as long as it lives.
    _proxy: ProxyGuard,
}

impl<F: Feed, M: Machine> Session<F, M> {
    /// The next response; `None` when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<M::Response>, Status> {
        loop {
            let view = self.feed.view();
            let (response, wake_at) = {
                let mut machine = lock(&self.machine);
                machine.on_view(&*view);
                (machine.next(&*view, Instant::now()), machine.wake_at())
            };
            if response.is_some() {
                return Ok(response);
            }
            drop(view); // of the whole mesh, and old before long
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
        let mut machine = lock(&self.machine);
        machine.on_view(&*view);
        machine.on_request(request, &*view).map_err(|refused| match refused {
            Refused::Limit { .. } => Status::resource_exhausted(refused.to_string()),
            Refused::NoType => Status::invalid_argument(refused.to_string()),
        })?;
        while let Some((type_url, names)) = machine.asked_otherwise() {
            self.feed.uses(type_url, names);
        }
        Ok(())
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
