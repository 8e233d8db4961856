//! `pillion.mesh.v1.Registration`: sidecars register their instances on a stream and beat on it.
//!
//! A stream is one future that the transport polls: no task, no queue beyond what one message is
//! answered with. A proxy may register only instances of the service its certificate names. A
//! stream that ends without a word leaves the leases running.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use pillion_model::name::{InstanceId, ServiceName, SpiffeId};
use pillion_xds::mesh::registration_server::{Registration as Rpc, RegistrationServer};
use pillion_xds::mesh::to_proxy::Message as Answer;
use pillion_xds::mesh::to_registry::Message;
use pillion_xds::mesh::{
    Acknowledged, Beat, Deregister, Deregistered, GoAway, HealthCheck, Refused, Register, Registered,
    ToProxy, ToRegistry,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::{Catalog, Changes, RegisterError, ReportError};
use crate::lease::{Lease, beat_interval};
use crate::metrics::Metrics;
use crate::resolve::{MeshModel, ProbeKind};

mod message;

/// Instances on one stream at most.
const SLOTS_MAX: usize = 64;
/// Largest message: an instance with all its labels.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// When the registry stops, proxies reconnect within this long, spread at random.
const RECONNECT_WITHIN: Duration = Duration::from_secs(2);

/// The service.
pub struct RegistrationService {
    shared: Arc<Shared>,
}

struct Shared {
    catalog: Arc<Catalog>,
    model: watch::Receiver<Arc<MeshModel>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl RegistrationService {
    /// A service that registers into `catalog`; health checks come from `model`. Streams are asked
    /// to go elsewhere on `stop`.
    pub fn new(
        catalog: Arc<Catalog>,
        model: watch::Receiver<Arc<MeshModel>>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self { shared: Arc::new(Shared { catalog, model, metrics, stop }) }
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
            model: self.shared.model.clone(),
            shared: Arc::clone(&self.shared),
            slots: BTreeMap::new(),
            answers: VecDeque::new(),
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
    model: watch::Receiver<Arc<MeshModel>>,
    shared: Arc<Shared>,
    slots: BTreeMap<u32, Slot>,
    answers: VecDeque<Answer>,
    leaving: bool,
}

/// One instance on a stream.
struct Slot {
    service: ServiceName,
    id: InstanceId,
    generation: u64,
    address: IpAddr,
    lease: Arc<Lease>,
    /// As last told.
    check: Option<HealthCheck>,
}

impl Session {
    /// The next answer; `None` when the stream is over.
    async fn next(&mut self, requests: &mut Streaming<ToRegistry>) -> Result<Option<ToProxy>, Status> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(Some(ToProxy { message: Some(answer) }));
            }
            if self.leaving {
                return Ok(None);
            }
            let stop = self.shared.stop.clone();
            tokio::select! {
                message = requests.message() => match message? {
                    Some(message) => self.take(message).await,
                    None => return Ok(None),
                },
                changed = self.model.changed() => match changed {
                    Ok(()) => self.tell_new_checks(),
                    Err(_) => self.go_away(),
                },
                () = stop.cancelled() => self.go_away(),
            }
        }
    }

    async fn take(&mut self, message: ToRegistry) {
        let answer = match message.message {
            Some(Message::Register(register)) => self.register(register).await,
            Some(Message::Beat(beat)) => self.beat(beat).await,
            Some(Message::Deregister(deregister)) => self.deregister(deregister).await,
            // A newer sidecar's message that this version does not know.
            None => return,
        };
        self.answers.push_back(answer);
    }

    async fn register(&mut self, register: Register) -> Answer {
        let slot = register.slot;
        let refuse = |reason: String, is_final| Answer::Refused(Refused { slot, reason, r#final: is_final });
        if self.slots.len() >= SLOTS_MAX && !self.slots.contains_key(&slot) {
            return refuse(format!("a stream carries at most {SLOTS_MAX} instances"), true);
        }
        let registration = match message::registration(register.instance.unwrap_or_default(), self.remote) {
            Ok(registration) => registration,
            Err(problems) => {
                let text = problems.iter().map(|problem| format!("{}: {}", problem.field, problem.detail));
                return refuse(text.collect::<Vec<_>>().join("; "), true);
            }
        };
        let service = &registration.service;
        if self.peer.service_name() != Some(service) {
            tracing::warn!(peer = %self.peer, %service, "refused to register another service's instance");
            let reason = format!(
                "service: got {service}, but the client certificate is {}; a proxy may register only instances \
                 of its own service",
                self.peer
            );
            return refuse(reason, true);
        }
        match self.shared.catalog.register(&registration).await {
            Ok(registered) => {
                let (instance, lease) = (registered.instance, registered.lease);
                let (service, id) = (instance.service.clone(), instance.id.clone());
                let check = self.check(&service);
                let known = Slot {
                    service,
                    id,
                    generation: instance.generation,
                    address: instance.address,
                    lease,
                    check,
                };
                let answer = known.registered(slot);
                self.slots.insert(slot, known);
                answer
            }
            // Whoever was newer has left: the id is free, for a newer generation still.
            Err(RegisterError::Older { gone: true, .. }) => {
                Answer::Acknowledged(Acknowledged { slot, beat_interval_ms: 0, unknown: true })
            }
            Err(error) => {
                let is_final = matches!(error, RegisterError::Older { .. });
                refuse(error.to_string(), is_final)
            }
        }
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
            let report =
                self.shared.catalog.report(&known.service, &known.id, Some(known.generation), changes).await;
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
        let have = world.catalog.services.get(&known.service)?.instances.get(&known.id)?;
        let (service, id, got, have) = (&known.service, &known.id, known.generation, have.generation);
        (have > got).then(|| {
            let reason = ReportError::Older { got, have };
            Answer::Refused(Refused { slot, reason: format!("{service}/{id}: {reason}"), r#final: true })
        })
    }

    async fn deregister(&mut self, deregister: Deregister) -> Answer {
        let slot = deregister.slot;
        let Some(known) = self.slots.get(&slot) else { return Answer::Deregistered(Deregistered { slot }) };
        let left = self.shared.catalog.deregister(&known.service, &known.id, Some(known.generation)).await;
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
        let model = Arc::clone(&self.model.borrow_and_update());
        for (slot, known) in &mut self.slots {
            let check = check_of(&model, &known.service);
            if check != known.check {
                known.check = check;
                self.answers.push_back(known.registered(*slot));
            }
        }
    }

    fn check(&self, service: &ServiceName) -> Option<HealthCheck> {
        check_of(&self.model.borrow(), service)
    }

    fn go_away(&mut self) {
        self.leaving = true;
        let spread = RECONNECT_WITHIN.mul_f64(fastrand::f64());
        let reconnect_after_ms = millis(spread);
        self.answers.push_back(Answer::GoAway(GoAway { reconnect_after_ms }));
    }
}

impl Slot {
    fn registered(&self, slot: u32) -> Answer {
        Answer::Registered(Registered {
            slot,
            generation: self.generation,
            beat_interval_ms: self.interval_ms(),
            health_check: self.check.clone(),
            address: self.address.to_string(),
        })
    }

    fn interval_ms(&self) -> u32 {
        millis(beat_interval(self.lease.ttl()))
    }
}

fn check_of(model: &MeshModel, service: &ServiceName) -> Option<HealthCheck> {
    let plan = model.services.get(service)?.inbound.health_check.as_ref()?;
    Some(HealthCheck {
        http_path: match &plan.kind {
            ProbeKind::Http(path) => path.clone(),
            ProbeKind::Tcp => String::new(),
        },
        interval_ms: millis(plan.interval),
        timeout_ms: millis(plan.timeout),
        healthy: plan.healthy,
        unhealthy: plan.unhealthy,
        port: plan.port.clone(),
    })
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
