//! Names, as the application sees them: virtual addresses by DNS, and services on demand.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pillion_dns::Name;
use pillion_dns::forward::Forwarder;
use pillion_dns::{Answer, Code, Data, Owner, Record, Soa};
use pillion_dns::{Kind, Question};
use pillion_dns::{Outcome, Reply, Zone};
use pillion_model::mesh::{MeshService, Resources};
use tracing::warn;

use super::vip::Slot;
use crate::control::{Control, Lookup};
use crate::outbound::OnDemand;
use crate::runtime::Runtime;

/// Answers the application's questions.
pub(super) struct LocalZone(Arc<Names>);

/// What is known of names.
pub(super) struct Names {
    pub(super) zone: String,
    pub(super) control: Control,
    pub(super) vips: Vips,
    pub(super) forwarder: Forwarder,
}

/// Opens virtual addresses.
pub(super) struct Vips {
    pub(super) runtime: Arc<Runtime>,
    /// `None`: no range was left; names have no address then.
    pub(super) slot: Option<Slot>,
    /// Never bound: the application's own bind of every address would fail.
    pub(super) own_ports: BTreeSet<u16>,
    /// Ports already complained about.
    pub(super) reported: Mutex<BTreeSet<String>>,
}

impl Vips {
    /// The service's virtual address, with its ports accepting.
    pub(super) fn open(&self, service: &MeshService) -> Option<Ipv4Addr> {
        let slot = self.slot.as_ref()?;
        if service.index == 0 {
            return None; // the registry has not given it one yet
        }
        let address = slot.address(service.index);
        let mut open = service.clone();
        open.ports.retain(|port| !self.own_ports.contains(&port.port));
        for rejected in self.runtime.open_vip(address.into(), &open).rejected {
            let key = format!("{} {}", rejected.name, rejected.reason);
            let fresh = self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
            if fresh {
                warn!(service = %service.service, listener = rejected.name, reason = rejected.reason, "a virtual address cannot be used; the outbound port can");
            }
        }
        Some(address)
    }
}

impl LocalZone {
    pub(super) fn new(names: Arc<Names>) -> Self {
        Self(names)
    }
}

impl Zone for LocalZone {
    fn answer(&self, question: &Question<'_>) -> Reply {
        let names = &self.0;
        let name = question.name.clone();
        if let Some(address) = name.reverse_address() {
            return names.reverse(address).unwrap_or_else(|| names.forwarder.forward(question));
        }
        let ours = name.within(&names.zone).is_some();
        if name.as_str() == names.zone {
            return names.apex(question.kind).into();
        }
        if !ours && !names.control.status().borrow().connected && !names.knows(name.as_str()) {
            return names.forwarder.forward(question);
        }
        let (names, kind) = (Arc::clone(names), question.kind);
        let forwarded = (!ours).then(|| names.forwarder.forward(question));
        Reply::Later(Box::pin(async move {
            match (names.find(&name, kind).await, forwarded) {
                (Found::Answer(answer), _) => Outcome::Answer(answer),
                (_, Some(Reply::Later(forwarded))) => forwarded.await,
                (_, Some(Reply::Now(outcome))) => outcome,
                (Found::NoSuchName, None) => Outcome::Answer(names.no(Code::NoSuchName)),
                (Found::Unknown, None) => Outcome::Answer(Answer::code(Code::ServerFailure)),
            }
        }))
    }
}

/// What is found under a name.
enum Found {
    Answer(Answer),
    NoSuchName,
    /// The registry does not say.
    Unknown,
}

impl Names {
    async fn find(&self, name: &Name, kind: Kind) -> Found {
        let text = name.as_str();
        let (wanted, special) = match text.split_once('.') {
            Some((port, rest)) if port.starts_with('_') => match rest.split_once('.') {
                Some(("_tcp", service)) => (service, Some(Special::Srv(port[1..].to_owned()))),
                _ => return Found::NoSuchName,
            },
            Some(("all", service)) => (service, Some(Special::Instances)),
            _ => (text, None),
        };
        let service = match self.control.lookup(wanted).await {
            Lookup::Service(service) => service,
            Lookup::NxDomain => return Found::NoSuchName,
            Lookup::Timeout => return Found::Unknown,
        };
        match special {
            Some(Special::Srv(port)) => self.ports(&service, &port, wanted, kind),
            Some(Special::Instances) => {
                let resources = self.control.resources().borrow().clone();
                Found::Answer(self.records(instances(&resources, &service, kind)))
            }
            None => {
                let vip = self.vips.open(&service);
                let a = vip.filter(|_| matches!(kind, Kind::A | Kind::ANY));
                Found::Answer(self.records(
                    a.map(|address| question_record(TTL_VIP, Data::A(address))).into_iter().collect(),
                ))
            }
        }
    }

    fn ports(&self, service: &MeshService, port: &str, name: &str, kind: Kind) -> Found {
        let Some(port) = service.ports.iter().find(|have| have.name == port) else {
            return Found::NoSuchName;
        };
        if !matches!(kind, Kind::SRV | Kind::ANY) {
            return Found::Answer(self.no(Code::NoError));
        }
        let target: Arc<str> = name.into();
        let srv = Data::Srv { priority: 0, weight: 100, port: port.port, target: Arc::clone(&target) };
        let mut answer = self.records(vec![question_record(TTL_VIP, srv)]);
        if let Some(address) = self.vips.open(service) {
            let a = Record { owner: Owner::Name(target), ttl: TTL_VIP, data: Data::A(address) };
            answer.additional.push(a);
        }
        Found::Answer(answer)
    }

    /// `None`: not a virtual address.
    fn reverse(&self, address: IpAddr) -> Option<Reply> {
        let slot = self.vips.slot.as_ref()?;
        let index = slot.index(address)?;
        let resources = self.control.resources().borrow().clone();
        let service = resources.services.values().find(|service| service.index == index);
        let answer = match service.and_then(|service| service.names.first()) {
            Some(name) => self.records(vec![question_record(TTL_VIP, Data::Ptr(name.as_str().into()))]),
            None => self.no(Code::NoSuchName),
        };
        Some(answer.into())
    }

    fn knows(&self, name: &str) -> bool {
        self.control.resources().borrow().services.contains_key(name)
    }

    fn apex(&self, kind: Kind) -> Answer {
        let soa = self.soa();
        match kind {
            Kind::SOA | Kind::ANY => Answer {
                authoritative: true,
                recursion_available: true,
                answers: vec![Record { owner: Owner::Question, ..soa }],
                ..Answer::default()
            },
            Kind::NS => self.records(vec![question_record(TTL_VIP, Data::Ns(self.server()))]),
            _ => self.no(Code::NoError),
        }
    }

    /// The records; without any, NODATA.
    fn records(&self, answers: Vec<Record>) -> Answer {
        if answers.is_empty() {
            return self.no(Code::NoError);
        }
        Answer { authoritative: true, recursion_available: true, answers, ..Answer::default() }
    }

    /// NODATA or NXDOMAIN.
    fn no(&self, code: Code) -> Answer {
        Answer {
            code,
            authoritative: true,
            recursion_available: true,
            authority: vec![self.soa()],
            ..Answer::default()
        }
    }

    fn soa(&self) -> Record {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let soa = Soa {
            server: self.server(),
            mailbox: format!("hostmaster.{}", self.zone).into(),
            serial: u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(0),
            minimum: TTL_NEGATIVE,
        };
        Record { owner: Owner::Name(self.zone.as_str().into()), ttl: TTL_NEGATIVE, data: Data::Soa(soa) }
    }

    fn server(&self) -> Arc<str> {
        format!("ns.{}", self.zone).into()
    }
}

enum Special {
    /// The port of this name.
    Srv(String),
    /// Instances instead of the virtual address.
    Instances,
}

fn question_record(ttl: u32, data: Data) -> Record {
    Record { owner: Owner::Question, ttl, data }
}

/// Addresses of the instances that take traffic.
fn instances(resources: &Resources, service: &MeshService, kind: Kind) -> Vec<Record> {
    let clusters = service.ports.iter().flat_map(|port| &port.clusters);
    let addresses: BTreeSet<IpAddr> = clusters
        .filter_map(|cluster| resources.endpoints.get(cluster))
        .flat_map(|assignment| &assignment.localities)
        .flat_map(|locality| &locality.endpoints)
        .filter(|endpoint| endpoint.health.takes_traffic())
        .filter_map(|endpoint| match &endpoint.address {
            pillion_model::endpoint::HostAddress::Socket(address) => Some(address.ip()),
            _ => None,
        })
        .collect();
    let data = addresses.into_iter().filter_map(|address| match (address, kind) {
        (IpAddr::V4(address), Kind::A | Kind::ANY) => Some(Data::A(address)),
        (IpAddr::V6(address), Kind::AAAA | Kind::ANY) => Some(Data::Aaaa(address)),
        _ => None,
    });
    data.map(|data| question_record(TTL_INSTANCE, data)).collect()
}

/// The outbound side asks here for names it does not know.
pub(super) struct AskControl(pub(super) Control);

impl OnDemand for AskControl {
    fn lookup<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Arc<MeshService>>> + Send + 'a>> {
        Box::pin(async move {
            match self.0.lookup(host).await {
                Lookup::Service(service) => Some(service),
                Lookup::NxDomain | Lookup::Timeout => None,
            }
        })
    }

    fn touch(&self, host: &str) {
        self.0.touch(host);
    }
}

/// The resolvers of this machine, without the sidecar itself.
pub(super) fn forwarder(ourselves: SocketAddr) -> Forwarder {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    Forwarder::from_resolv_conf(&text, &[ourselves])
}

/// For how many seconds a virtual address may be kept.
const TTL_VIP: u32 = 30;
/// For how many seconds an instance's address may be kept.
const TTL_INSTANCE: u32 = 5;
/// For how many seconds a "no" may be kept.
const TTL_NEGATIVE: u32 = 5;
