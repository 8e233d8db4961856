//! Keeps a [`Client`] connected: one stream at a time over a tonic channel, for ever.

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::wire::{Delta, Sotw, Wire};
use super::{Backoff, Client, Decode, Update};
use crate::ads::Variant;

/// How long a connection, and then the stream on it, may take to be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests between the client and the transport.
const REQUESTS_MAX: usize = 32;
/// Largest response taken.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The owner of a [`Client`]: what the driver reports to.
pub trait Handler: Send {
    /// A resource as read.
    type Value: Send;

    /// The client. Subscriptions changed at any time are sent by the driver.
    fn client(&mut self) -> &mut Client;

    /// Reads resources.
    fn decode(&self) -> Decode<Self::Value>;

    /// A response has been taken in.
    fn on_update(&mut self, update: Update<Self::Value>);

    /// The stream opened or ended.
    fn on_link(&mut self, link: Link);

    /// Waits for something to do beside the stream and does it: commands, timers. Called all the
    /// time, connected or not, and dropped at any `.await`, so nothing may be lost there.
    fn work(&mut self) -> impl Future<Output = ()> + Send;

    /// Whether the connection is to be made anew, as with another certificate. Asked after `work`, and told
    /// once.
    fn takes_leave(&mut self) -> bool {
        false
    }
}

/// State of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A stream is open.
    Connected,
    /// It ended or could not be opened.
    Lost {
        /// Why.
        error: String,
        /// When the next attempt is made.
        retry_in: Duration,
    },
}

/// Runs until `stop`, incrementally: see [`run_variant`].
pub async fn run<H, F, A>(handler: &mut H, connect: F, stop: &CancellationToken)
where
    H: Handler,
    F: FnMut() -> A + Send,
    A: Future<Output = Result<Channel, Box<dyn Error + Send + Sync>>> + Send,
{
    run_wire::<Delta, H, F, A>(handler, connect, stop).await;
}

/// Runs until `stop`: connects by `connect`, opens the stream, and does so again after every loss,
/// waiting as [`Backoff`] says.
///
/// Dead connections are for the channel to notice: give it HTTP/2 keep-alive.
pub async fn run_variant<H, F, A>(variant: Variant, handler: &mut H, connect: F, stop: &CancellationToken)
where
    H: Handler,
    F: FnMut() -> A + Send,
    A: Future<Output = Result<Channel, Box<dyn Error + Send + Sync>>> + Send,
{
    match variant {
        Variant::Delta => run_wire::<Delta, H, F, A>(handler, connect, stop).await,
        Variant::Sotw => run_wire::<Sotw, H, F, A>(handler, connect, stop).await,
    }
}

async fn run_wire<W, H, F, A>(handler: &mut H, mut connect: F, stop: &CancellationToken)
where
    W: Wire,
    H: Handler,
    F: FnMut() -> A + Send,
    A: Future<Output = Result<Channel, Box<dyn Error + Send + Sync>>> + Send,
{
    let mut backoff = Backoff::default();
    loop {
        let ended = stop.run_until_cancelled(stream::<W, H, F, A>(handler, &mut connect, &mut backoff)).await;
        let (error, retry_in) = match ended {
            None => return,
            Some(End::Lost(error)) => (error, backoff.next_wait(fastrand::f64())),
            Some(End::Left) => ("another connection is made".to_owned(), Duration::ZERO),
        };
        handler.on_link(Link::Lost { error, retry_in });
        if stop.run_until_cancelled(beside(handler, sleep(retry_in))).await.is_none() {
            return;
        }
    }
}

/// How a stream ended.
enum End {
    /// We left it.
    Left,
    /// Anything else, with the reason.
    Lost(String),
}

/// One connection and stream; gives the reason of its end.
async fn stream<W, H, F, A>(handler: &mut H, connect: &mut F, backoff: &mut Backoff) -> End
where
    W: Wire,
    H: Handler,
    F: FnMut() -> A + Send,
    A: Future<Output = Result<Channel, Box<dyn Error + Send + Sync>>> + Send,
{
    let _ = handler.takes_leave(); // what is made now is made with what there is now
    let channel = match beside(handler, timeout(CONNECT_TIMEOUT, connect())).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return End::Lost(chain(&*error)),
        Err(_elapsed) => return End::Lost(format!("no connection to the server within {CONNECT_TIMEOUT:?}")),
    };
    let mut service =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    let (requests, queue) = mpsc::channel(REQUESTS_MAX);
    handler.client().connected();
    fill::<W>(handler.client(), &requests); // a server may wait for the first request before it answers
    let opening = W::open(&mut service, queue);
    let mut responses = match beside(handler, timeout(CONNECT_TIMEOUT, opening)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return End::Lost(explain(&status)),
        Err(_elapsed) => {
            return End::Lost(format!("the server did not open the stream within {CONNECT_TIMEOUT:?}"));
        }
    };
    handler.on_link(Link::Connected);
    loop {
        let has_request = handler.client().has_request();
        tokio::select! {
            slot = requests.reserve(), if has_request => match (slot, W::next(handler.client())) {
                (Ok(slot), Some(request)) => slot.send(request),
                (Ok(_unused), None) => {}
                (Err(_closed), _) => return End::Lost(ended(responses.message().await.map(drop))),
            },
            message = responses.message() => match message {
                Ok(Some(response)) => {
                    backoff.reset();
                    let decode = handler.decode();
                    let update = W::take(handler.client(), response, &decode);
                    handler.on_update(update);
                }
                other => return End::Lost(ended(other.map(drop))),
            },
            () = handler.work() => if handler.takes_leave() {
                return End::Left;
            }
        }
    }
}

fn fill<W: Wire>(client: &mut Client, requests: &mpsc::Sender<W::Request>) {
    while let Ok(slot) = requests.try_reserve() {
        let Some(request) = W::next(client) else {
            return;
        };
        slot.send(request);
    }
}

fn ended(end: Result<(), tonic::Status>) -> String {
    match end {
        Ok(()) => "the server closed the stream".to_owned(),
        Err(status) => explain(&status),
    }
}

/// Waits for `future` while the handler goes on with its own work.
async fn beside<H: Handler, T>(handler: &mut H, future: impl Future<Output = T> + Send) -> T {
    let mut future = pin!(future);
    loop {
        tokio::select! {
            output = &mut future => return output,
            () = handler.work() => {}
        }
    }
}

/// A status as people read it: its own text is that of a debug form.
fn explain(status: &tonic::Status) -> String {
    let cause =
        std::error::Error::source(status).map(|cause| format!(": {}", chain(cause))).unwrap_or_default();
    format!("{:?}: {}{cause}", status.code(), status.message())
}

/// An error and its sources on one line, without repetition.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
