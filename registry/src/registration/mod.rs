//! `pillion.mesh.v1.Registration`: sidecars register their instances on a stream and beat on it.
//!
//! A stream is one future that the transport polls: no task, no queue beyond what the messages that
//! have arrived are answered with. Registrations that arrive together are written together. A proxy may
//! register only instances of the service its certificate names. A stream that ends without a word leaves
//! the leases running.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, stream};
use pillion_model::name::{ServiceName, SpiffeId};
use pillion_xds::mesh::registration_server::{Registration as Rpc, RegistrationServer};
use pillion_xds::mesh::to_proxy::Message as Answer;
use pillion_xds::mesh::to_registry::Message;
use pillion_xds::mesh::{
    Acknowledged, Beat, Beats, BeatsAcknowledged, Deregister, Deregistered, GoAway, HealthCheck, Refused,
    Register, ToProxy, ToRegistry,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::{Catalog, Changes, RegisterError, Registered as Accepted, Registration, ReportError};
use crate::control::Checks;
use crate::metrics::Metrics;

mod message;
mod slot;

use slot::{Slot, check_of, millis};

/// Instances on one stream at most.
const SLOTS_MAX: usize = 1024;
/// Messages that are taken in together at most.
const TOGETHER_MAX: usize = 256;
/// Streams that register at the same time. What the others send meanwhile is neither read nor in memory in
/// its larger forms: thousands of streams reconnect at once when a registry has been away.
const REGISTERING_MAX: usize = 512;
/// Largest message: an instance with all its labels.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Answers that a stream at rest has room for.
const ANSWERS_KEPT: usize = 2;
/// When the registry stops, proxies reconnect within this long, spread at random.
const RECONNECT_WITHIN: Duration = Duration::from_secs(2);

/// The service.
pub struct RegistrationService {
    shared: Arc<Shared>,
}

struct Shared {
    catalog: Arc<Catalog>,
    checks: watch::Receiver<Arc<Checks>>,
    metrics: Arc<Metrics>,
    /// Turns to register.
    turns: Semaphore,
    stop: CancellationToken,
}

impl RegistrationService {
    /// A service that registers into `catalog`; health checks come from `checks`. Streams are asked
    /// to go elsewhere on `stop`.
    pub fn new(
        catalog: Arc<Catalog>,
        checks: watch::Receiver<Arc<Checks>>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let turns = Semaphore::new(REGISTERING_MAX);
        Self { shared: Arc::new(Shared { catalog, checks, metrics, turns, stop }) }
    }

    /// As tonic serves it.
    pub fn into_server(self) -> RegistrationServer<Self> {
        RegistrationServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ToProxy, Status>> + Send>>;

#[tonic::async_trait]
impl Rpc for RegistrationService {
    type ConnectStream = Answers;

    async fn connect(&self, request: Request<Streaming<ToRegistry>>) -> Result<Response<Answers>, Status> {
        let Some(peer) = request.extensions().get::<SpiffeId>().cloned() else {
            return Err(Status::unauthenticated("a client certificate of the mesh is needed to register"));
        };
        let remote = request.remote_addr().map(|remote| remote.ip().to_canonical());
        let session = Session {
            peer,
            remote,
            checks: self.shared.checks.clone(),
            shared: Arc::clone(&self.shared),
            slots: BTreeMap::new(),
            answers: VecDeque::new(),
            failed: None,
            leaving: false,
        };
        let state = (session, request.into_inner());
        let answers = stream::unfold(Some(Box::new(state)), |state| async move {
            let mut state = state?;
            let (session, requests) = &mut *state;
            match session.next(requests).await {
                Ok(Some(answer)) => Some((Ok(answer), Some(state))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// One stream.
struct Session {
    peer: SpiffeId,
    /// Where the stream comes from.
    remote: Option<IpAddr>,
    checks: watch::Receiver<Arc<Checks>>,
    shared: Arc<Shared>,
    slots: BTreeMap<u32, Slot>,
    answers: VecDeque<Answer>,
    /// Why nothing more arrives; told once everything that did arrive is answered.
    failed: Option<Status>,
    leaving: bool,
}

impl Session {
    /// The next answer; `None` when the stream is over.
    async fn next(&mut self, requests: &mut Streaming<ToRegistry>) -> Result<Option<ToProxy>, Status> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(Some(ToProxy { message: Some(answer) }));
            }
            if let Some(status) = self.failed.take() {
                return Err(status);
            }
            if self.leaving {
                return Ok(None);
            }
            // What a burst of answers took is not kept by thousands of streams that only beat.
            self.answers.shrink_to(ANSWERS_KEPT);
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                message = requests.message() => match message? {
                    Some(message) => {
                        let registers = matches!(message.message, Some(Message::Register(_)));
                        // Nobody closes it: everybody has a turn.
                        let _turn = if registers { shared.turns.acquire().await.ok() } else { None };
                        let arrived = self.arrived(message, requests);
                        self.take(arrived).await;
                    }
                    None => return Ok(None),
                },
                changed = self.checks.changed() => match changed {
                    Ok(()) => self.tell_new_checks(),
                    Err(_) => self.go_away(),
                },
                () = shared.stop.cancelled() => self.go_away(),
            }
        }
    }

    /// A message, and those that have arrived behind it.
    fn arrived(&mut self, first: ToRegistry, requests: &mut Streaming<ToRegistry>) -> Vec<Message> {
        // A newer sidecar's message that this version does not know has no content.
        let mut arrived = Vec::from_iter(first.message);
        while arrived.len() < TOGETHER_MAX {
            match requests.message().now_or_never() {
                Some(Ok(Some(next))) => arrived.extend(next.message),
                // Nothing yet, or the end, which is told again.
                None | Some(Ok(None)) => break,
                Some(Err(status)) => {
                    self.failed = Some(status);
                    break;
                }
            }
        }
        arrived
    }

    async fn take(&mut self, messages: Vec<Message>) {
        let mut registers = Vec::new();
        for message in messages {
            if let Message::Register(register) = message {
                registers.push(register);
                continue;
            }
            self.register(std::mem::take(&mut registers)).await;
            let answer = match message {
                Message::Beat(beat) => self.beat(beat).await,
                Message::Beats(beats) => self.beat_many(&beats).await,
                Message::Deregister(deregister) => self.deregister(deregister).await,
                Message::Register(_) => continue,
            };
            self.answers.push_back(answer);
        }
        self.register(registers).await;
    }

    /// Registers what can be read, and answers each in order.
    async fn register(&mut self, registers: Vec<Register>) {
        if registers.is_empty() {
            return;
        }
        let (mut valid, mut read) = (Vec::new(), Vec::with_capacity(registers.len()));
        let mut taken = self.slots.len();
        for register in registers {
            let slot = register.slot;
            taken += usize::from(!self.slots.contains_key(&slot));
            let checked = match taken > SLOTS_MAX {
                true => Err(format!("a stream carries at most {SLOTS_MAX} instances")),
                false => self.check_register(register),
            };
            read.push((slot, checked.map(|registration| valid.push(registration))));
        }
        let mut outcomes = self.shared.catalog.register_many(&valid).await.into_iter();
        for (slot, checked) in read {
            let outcome = match checked {
                Ok(()) => outcomes.next().expect("one outcome for each registration"),
                Err(reason) => {
                    self.answers.push_back(Answer::Refused(Refused { slot, reason, r#final: true }));
                    continue;
                }
            };
            let answer = match outcome {
                Ok(accepted) => self.accept(slot, accepted),
                // Whoever was newer has left: the id is free, for a newer generation still.
                Err(RegisterError::Older { gone: true, .. }) => {
                    Answer::Acknowledged(Acknowledged { slot, beat_interval_ms: 0, unknown: true })
                }
                Err(error) => {
                    let is_final = matches!(error, RegisterError::Older { .. });
                    Answer::Refused(Refused { slot, reason: error.to_string(), r#final: is_final })
                }
            };
            self.answers.push_back(answer);
        }
    }

    /// What a message registers, if its sender may.
    fn check_register(&self, register: Register) -> Result<Registration, String> {
        let instance = register.instance.unwrap_or_default();
        let registration = message::registration(instance, self.remote).map_err(|problems| {
            let text = problems.iter().map(|problem| format!("{}: {}", problem.field, problem.detail));
            text.collect::<Vec<_>>().join("; ")
        })?;
        let service = &registration.service;
        if self.peer.service_name() == Some(service) {
            return Ok(registration);
        }
        tracing::warn!(peer = %self.peer, %service, "refused to register another service's instance");
        Err(format!(
            "service: got {service}, but the client certificate is {}; a proxy may register only instances \
             of its own service",
            self.peer
        ))
    }

    fn accept(&mut self, slot: u32, accepted: Accepted) -> Answer {
        let Accepted { instance, lease } = accepted;
        let check = self.check(&instance.service).map(Box::new);
        let known = Slot { generation: instance.generation, address: instance.address, lease, check };
        let answer = known.registered(slot);
        self.slots.insert(slot, known);
        answer
    }

    async fn beat_many(&mut self, beats: &Beats) -> Answer {
        let mut answer = BeatsAcknowledged { beat_interval_ms: u32::MAX, unknown: Vec::new() };
        for &slot in &beats.slots {
            match self.beat(Beat { slot, ..Beat::default() }).await {
                Answer::Acknowledged(Acknowledged { unknown: false, beat_interval_ms, .. }) => {
                    answer.beat_interval_ms = answer.beat_interval_ms.min(beat_interval_ms);
                }
                // A newer instance has its place, or it is gone: registering again tells which.
                _ => answer.unknown.push(slot),
            }
        }
        if answer.beat_interval_ms == u32::MAX {
            answer.beat_interval_ms = 0;
        }
        Answer::BeatsAcknowledged(answer)
    }

    async fn beat(&mut self, beat: Beat) -> Answer {
        let slot = beat.slot;
        let unknown = Answer::Acknowledged(Acknowledged { slot, beat_interval_ms: 0, unknown: true });
        let Some(known) = self.slots.get(&slot) else { return unknown };
        if known.lease.has_ended() {
            let answer = self.displaced(slot, known).unwrap_or(unknown);
            self.slots.remove(&slot);
            return answer;
        }
        known.lease.beat(self.shared.catalog.now());
        self.shared.metrics.heartbeats.inc();
        if beat.reported.is_some()
            || beat.probe.is_some()
            || !known.lease.is_ours()
            || known.lease.is_held_back()
        {
            let changes = Changes {
                reported: beat.reported.map(|_| message::reported(beat.reported())),
                probe: beat.probe.map(|_| message::probe(beat.probe())),
                administrative: None,
            };
            let report = self
                .shared
                .catalog
                .report(known.lease.service(), known.lease.id(), Some(known.generation), changes)
                .await;
            match report {
                Ok(_) => {}
                Err(ReportError::Unknown(..)) => return unknown,
                Err(error @ ReportError::Older { .. }) => {
                    return Answer::Refused(Refused { slot, reason: error.to_string(), r#final: true });
                }
                Err(error @ ReportError::Store(_)) => {
                    return Answer::Refused(Refused { slot, reason: error.to_string(), r#final: false });
                }
            }
        }
        Answer::Acknowledged(Acknowledged { slot, beat_interval_ms: known.interval_ms(), unknown: false })
    }

    /// What to say to an instance whose id a newer one has.
    fn displaced(&self, slot: u32, known: &Slot) -> Option<Answer> {
        let world = self.shared.catalog.world();
        let (service, id, got) = (known.lease.service(), known.lease.id(), known.generation);
        let have = world.catalog.instance(service, id)?.generation;
        (have > got).then(|| {
            let reason = ReportError::Older { got, have };
            Answer::Refused(Refused { slot, reason: format!("{service}/{id}: {reason}"), r#final: true })
        })
    }

    async fn deregister(&mut self, deregister: Deregister) -> Answer {
        let slot = deregister.slot;
        let Some(known) = self.slots.get(&slot) else { return Answer::Deregistered(Deregistered { slot }) };
        let left = self
            .shared
            .catalog
            .deregister(known.lease.service(), known.lease.id(), Some(known.generation))
            .await;
        match left {
            // A newer generation under the same id has taken over: this one is gone already.
            Ok(()) | Err(ReportError::Unknown(..) | ReportError::Older { .. }) => {
                self.slots.remove(&slot);
                Answer::Deregistered(Deregistered { slot })
            }
            Err(error @ ReportError::Store(_)) => {
                Answer::Refused(Refused { slot, reason: error.to_string(), r#final: false })
            }
        }
    }

    /// Tells instances whose service asks for another health check than before.
    fn tell_new_checks(&mut self) {
        let checks = Arc::clone(&self.checks.borrow_and_update());
        for (slot, known) in &mut self.slots {
            let check = check_of(&checks, known.lease.service()).map(Box::new);
            if check != known.check {
                known.check = check;
                self.answers.push_back(known.registered(*slot));
            }
        }
    }

    fn check(&self, service: &ServiceName) -> Option<HealthCheck> {
        check_of(&self.checks.borrow(), service)
    }

    fn go_away(&mut self) {
        self.leaving = true;
        let spread = RECONNECT_WITHIN.mul_f64(fastrand::f64());
        let reconnect_after_ms = millis(spread);
        self.answers.push_back(Answer::GoAway(GoAway { reconnect_after_ms }));
    }
}
