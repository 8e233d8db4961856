//! Keeps one instance registered: a long-lived stream to the registry with beats of a few bytes.
//!
//! The stream is opened again, with jittered backoff, whenever it ends. The registration is sent
//! anew on each stream; the registry keeps the lease in between, so a reconnect is no event there.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pillion_model::health::{Probe, Reported};
use pillion_xds::mesh::registration_client::RegistrationClient;
use pillion_xds::mesh::{self, to_proxy, to_registry};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

/// How the registry took the registration.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Status {
    /// Not yet heard.
    Connecting,
    /// Registered.
    Registered(mesh::Registered),
    /// It was, until somebody else registered under the same instance id.
    Displaced,
    /// Refused; `last` says it is of no use to try again without a change.
    Refused {
        /// What is wrong.
        reason: String,
        /// Trying again cannot help.
        last: bool,
    },
}

/// What the registration reports; changes are sent with the next beat, at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// What the sidecar says of its instance.
    pub(super) reported: Reported,
    /// What the health check says.
    pub(super) probe: Probe,
}

/// Where streams come from: dials the registry with the identity of the moment.
pub(super) trait Dial: Send + Sync {
    /// Opens a channel.
    fn dial(&self) -> impl Future<Output = Result<Channel, String>> + Send;

    /// Waits until there is another identity than now.
    fn renewed(&self) -> impl Future<Output = ()> + Send;
}

/// Asks a running registration to leave; answered when the registry has confirmed (or cannot).
pub(super) type Leave = oneshot::Sender<()>;

/// Everything a registration needs.
pub(super) struct Registration<D> {
    /// Opens channels.
    pub(super) dial: Arc<D>,
    /// The record, with the generation of this start. Health fields are filled from `state`.
    pub(super) instance: mesh::Instance,
    /// What to report.
    pub(super) state: watch::Receiver<State>,
    /// How it went.
    pub(super) status: watch::Sender<Status>,
    /// Asks to leave.
    pub(super) leave: oneshot::Receiver<Leave>,
    /// Ends without leaving.
    pub(super) stop: CancellationToken,
}

impl<D: Dial> Registration<D> {
    /// Keeps the instance registered until it is asked to leave, is refused for good, or `stop`.
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        let mut backoff = BACKOFF_MIN;
        loop {
            let started = Instant::now();
            let end = tokio::select! {
                () = stop.cancelled() => return,
                end = self.stream() => end,
            };
            let wait = match end {
                End::Left | End::Final => return,
                End::Reconnect(after) => after,
                End::Lost(reason) => {
                    debug!(reason, "registration stream ended");
                    if started.elapsed() > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                    let wait = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    wait
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                asked = &mut self.leave => {
                    // The registry is away: the lease will run out by itself.
                    if let Ok(done) = asked {
                        let _ = done.send(());
                    }
                    return;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One stream, from Register to its end.
    async fn stream(&mut self) -> End {
        let channel = match timeout(CONNECT_TIMEOUT, self.dial.dial()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(reason)) => return End::Lost(reason),
            Err(_) => return End::Lost("connecting took too long".to_owned()),
        };
        let (send, receive) = mpsc::channel(QUEUE);
        let mut state = *self.state.borrow_and_update();
        if send.try_send(self.register(state)).is_err() {
            return End::Lost("the stream closed at once".to_owned());
        }
        let dial = Arc::clone(&self.dial);
        let mut renewed = std::pin::pin!(dial.renewed());
        let mut accepted = false;
        let mut client = RegistrationClient::new(channel);
        let opened = timeout(CONNECT_TIMEOUT, client.connect(ReceiverStream::new(receive))).await;
        let mut inbound = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return self.failed(&status),
            Err(_) => return End::Lost("the registry did not answer".to_owned()),
        };
        let mut beat_interval = BEAT_DEFAULT;
        let mut next_beat = Instant::now() + beat_interval;
        let mut heard = Instant::now();
        let mut leaving: Option<Leave> = None;
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message.message,
                        Ok(None) => return self.ended(leaving, "the registry closed the stream"),
                        Err(status) if leaving.is_some() => return self.ended(leaving, status.message()),
                        Err(status) => return self.failed(&status),
                    };
                    heard = Instant::now();
                    match message {
                        Some(to_proxy::Message::Registered(registered)) => {
                            beat_interval = interval_of(registered.beat_interval_ms);
                            next_beat = Instant::now() + jittered(beat_interval);
                            info!(address = registered.address, generation = registered.generation, "registered");
                            accepted = true;
                            self.status.send_replace(Status::Registered(registered));
                        }
                        Some(to_proxy::Message::Acknowledged(ack)) => {
                            beat_interval = interval_of(ack.beat_interval_ms);
                            if ack.unknown && leaving.is_none() {
                                // It was deleted, or who had taken its id has left. It lives, so it
                                // registers again: as the next generation, since the one that is gone
                                // cannot return.
                                self.instance.generation = newer_than(self.instance.generation);
                                warn!(generation = self.instance.generation, "the registry no longer has this instance; registering again");
                                if !std::mem::take(&mut accepted) {
                                    return End::Lost("the registry has known a newer instance".to_owned());
                                }
                                if send.send(self.register(state)).await.is_err() {
                                    return self.ended(leaving, "the stream closed");
                                }
                            }
                        }
                        Some(to_proxy::Message::Refused(refused)) => {
                            let last = refused.r#final;
                            if last && self.was_registered() {
                                error!(
                                    reason = refused.reason,
                                    "somebody else has registered under this instance id; this one goes on \
                                     unregistered, and nobody calls it. Give each an --instance-id of its own"
                                );
                                self.status.send_replace(Status::Displaced);
                                return End::Reconnect(DISPLACED_RETRY);
                            }
                            warn!(reason = refused.reason, "the registry refuses the registration");
                            self.status.send_replace(Status::Refused { reason: refused.reason, last });
                            return if last { End::Final } else { End::Lost("refused".to_owned()) };
                        }
                        Some(to_proxy::Message::Deregistered(_)) => return self.ended(leaving, "deregistered"),
                        Some(to_proxy::Message::GoAway(away)) => {
                            return End::Reconnect(Duration::from_millis(away.reconnect_after_ms.into()));
                        }
                        // Answers what is not asked here, or is of a newer registry.
                        Some(to_proxy::Message::BeatsAcknowledged(_)) | None => {}
                    }
                }
                // The registry ends connections with the certificate they were made with.
                () = &mut renewed, if leaving.is_none() => return End::Reconnect(Duration::ZERO),
                () = sleep_until(next_beat) => {
                    if heard.elapsed() > beat_interval * 3 + CONNECT_TIMEOUT {
                        return self.ended(leaving, "the registry has been silent for three beats");
                    }
                    next_beat = Instant::now() + jittered(beat_interval);
                    if send.try_send(beat(None)).is_err() {
                        return self.ended(leaving, "the stream is stuck");
                    }
                }
                changed = self.state.changed(), if leaving.is_none() => {
                    if changed.is_err() {
                        return End::Left;
                    }
                    state = *self.state.borrow_and_update();
                    if send.send(beat(Some(state))).await.is_err() {
                        return End::Lost("the stream closed".to_owned());
                    }
                }
                asked = &mut self.leave, if leaving.is_none() => {
                    leaving = asked.ok();
                    let goodbye = to_registry::Message::Deregister(mesh::Deregister { slot: SLOT });
                    if send.send(mesh::ToRegistry { message: Some(goodbye) }).await.is_err() {
                        return self.ended(leaving, "the stream closed");
                    }
                }
            }
        }
    }

    fn was_registered(&self) -> bool {
        matches!(*self.status.borrow(), Status::Registered(_) | Status::Displaced)
    }

    fn register(&self, state: State) -> mesh::ToRegistry {
        let mut instance = self.instance.clone();
        instance.set_reported(reported(state.reported));
        instance.set_probe(probe(state.probe));
        let register = mesh::Register { slot: SLOT, instance: Some(instance) };
        mesh::ToRegistry { message: Some(to_registry::Message::Register(register)) }
    }

    fn failed(&self, status: &tonic::Status) -> End {
        let last = matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::InvalidArgument);
        if last {
            warn!(reason = status.message(), "the registry refuses the registration");
            self.status.send_replace(Status::Refused { reason: status.message().to_owned(), last });
        }
        End::Lost(format!("{:?}: {}", status.code(), status.message()))
    }

    /// The stream is over; if we were leaving, that is all we wanted.
    fn ended(&self, leaving: Option<Leave>, reason: &str) -> End {
        match leaving {
            Some(done) => {
                let _ = done.send(());
                End::Left
            }
            None => End::Lost(reason.to_owned()),
        }
    }
}

/// How a stream ended.
enum End {
    /// We left.
    Left,
    /// Refused for good.
    Final,
    /// Asked to come back after this long.
    Reconnect(Duration),
    /// Anything else, with the reason.
    Lost(String),
}

fn beat(state: Option<State>) -> mesh::ToRegistry {
    let mut beat = mesh::Beat { slot: SLOT, ..mesh::Beat::default() };
    if let Some(state) = state {
        beat.set_reported(reported(state.reported));
        beat.set_probe(probe(state.probe));
    }
    mesh::ToRegistry { message: Some(to_registry::Message::Beat(beat)) }
}

fn reported(reported: Reported) -> mesh::Reported {
    match reported {
        Reported::Starting => mesh::Reported::Starting,
        Reported::Ready => mesh::Reported::Ready,
        Reported::NotReady => mesh::Reported::NotReady,
        Reported::Draining => mesh::Reported::Draining,
    }
}

fn probe(probe: Probe) -> mesh::Probe {
    match probe {
        Probe::Unknown => mesh::Probe::Unknown,
        Probe::Passing => mesh::Probe::Passing,
        Probe::Failing => mesh::Probe::Failing,
    }
}

fn interval_of(ms: u32) -> Duration {
    if ms == 0 { BEAT_DEFAULT } else { Duration::from_millis(ms.into()).max(BEAT_MIN) }
}

/// The next generation: by the clock, as that of a start.
fn newer_than(generation: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(generation.saturating_add(1))
}

/// 90 to 100 % of the interval, so that beats of many sidecars do not fall together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + fastrand::f64() / 10.0)
}

/// The only instance on this stream.
const SLOT: u32 = 1;
/// Messages waiting to be sent.
const QUEUE: usize = 16;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// How often somebody whose id another one has asks whether it is free again, and says so.
const DISPLACED_RETRY: Duration = Duration::from_secs(10);
const BEAT_DEFAULT: Duration = Duration::from_secs(10);
const BEAT_MIN: Duration = Duration::from_millis(100);
