//! Names, as the application sees them: virtual addresses by DNS, and services on demand.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pillion_dns::forward::Forwarder;
use pillion_dns::{
    Answer, AskedName, NS, Name, Outcome, PTR, Question, RData, Reason, Record, RecordType, Reply,
    ResponseCode, SRV, Soa, Zone, address, wire_name,
};
use pillion_model::mesh::{MeshService, Resources};

use super::vips::{Vip, Vips};
use crate::control::{Control, Lookup};

/// Answers the application's questions.
pub(super) struct LocalZone(Arc<Names>);

/// What is known of names.
pub(super) struct Names {
    pub(super) zone: String,
    pub(super) control: Control,
    pub(super) vips: Vips,
    pub(super) forwarder: Forwarder,
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
                (Found::NoSuchName, None) => Outcome::Answer(names.no(ResponseCode::NXDomain)),
                (Found::Unknown(why), None) => {
                    let failure = Answer::code(ResponseCode::ServFail);
                    Outcome::Answer(failure.noting(Reason::NoReachableAuthority, why))
                }
            }
        }))
    }
}

/// What is found under a name.
enum Found {
    Answer(Answer),
    NoSuchName,
    /// The registry does not say, or the address would lead elsewhere; why, for people.
    Unknown(&'static str),
}

impl Names {
    async fn find(&self, name: &AskedName, kind: RecordType) -> Found {
        let (text, ours) = (name.as_str(), name.within(&self.zone).is_some());
        let (wanted, special) = match text.split_once('.') {
            Some(("_tcp", service)) if ours => (service, Some(Special::Parent)),
            Some((port, rest)) if port.starts_with('_') => match rest.split_once('.') {
                Some(("_tcp", service)) => (service, Some(Special::Srv(port[1..].to_owned()))),
                _ => return Found::NoSuchName,
            },
            Some(("all", service)) => (service, Some(Special::Instances(None))),
            Some(("inst", service)) if ours => (service, Some(Special::Parent)),
            Some((id, rest)) if ours && rest.starts_with("inst.") => {
                (&rest["inst.".len()..], Some(Special::Instances(Some(id.to_owned()))))
            }
            _ => (text, None),
        };
        let service = match self.control.lookup(wanted).await {
            Lookup::Service(service) => service,
            Lookup::NxDomain => return Found::NoSuchName,
            Lookup::Timeout => return Found::Unknown("the registry does not answer"),
        };
        match special {
            Some(Special::Srv(port)) => self.ports(&service, &port, wanted, kind),
            Some(Special::Parent) => Found::Answer(self.no(ResponseCode::NoError)),
            Some(Special::Instances(id)) => {
                let resources = self.control.resources().borrow().clone();
                let found = instances(&resources, &service, id.as_deref());
                if id.is_some() && found.is_empty() {
                    return Found::NoSuchName;
                }
                let wanted = |address: &IpAddr| match kind {
                    RecordType::A => address.is_ipv4(),
                    RecordType::AAAA => address.is_ipv6(),
                    kind => kind == RecordType::ANY,
                };
                let found = found.into_iter().filter(wanted).map(address).collect();
                Found::Answer(self.records(TTL_INSTANCE, found))
            }
            None => {
                let vip = match self.vips.open(&service) {
                    Vip::Open(vip) => Some(vip),
                    Vip::None => None,
                    Vip::Refused => return Found::Unknown("the service's virtual address cannot be used"),
                };
                let a = vip.filter(|_| matches!(kind, RecordType::A | RecordType::ANY));
                Found::Answer(self.records(TTL_VIP, a.map(|vip| address(vip.into())).into_iter().collect()))
            }
        }
    }

    fn ports(&self, service: &MeshService, port: &str, name: &str, kind: RecordType) -> Found {
        let Some(port) = service.ports.iter().find(|have| have.name == port) else {
            return Found::NoSuchName;
        };
        if !matches!(kind, RecordType::SRV | RecordType::ANY) {
            return Found::Answer(self.no(ResponseCode::NoError));
        }
        let Some(target) = wire_name(name) else { return Found::NoSuchName };
        let srv = RData::SRV(SRV::new(0, 100, port.port, target.clone()));
        let mut answer = self.records(TTL_VIP, vec![srv]);
        if let Vip::Open(vip) = self.vips.open(service) {
            answer.additional.push(Record::from_rdata(target, TTL_VIP, address(vip.into())));
        }
        Found::Answer(answer)
    }

    /// `None`: not a virtual address.
    fn reverse(&self, address: IpAddr) -> Option<Reply> {
        let index = self.vips.index(address)?;
        let resources = self.control.resources().borrow().clone();
        let service = resources.services.values().find(|service| service.index == index);
        let name = service.and_then(|service| wire_name(service.names.first()?));
        let answer = match name {
            Some(name) => self.records(TTL_VIP, vec![RData::PTR(PTR(name))]),
            None => self.no(ResponseCode::NXDomain),
        };
        Some(answer.into())
    }

    fn knows(&self, name: &str) -> bool {
        self.control.resources().borrow().services.contains_key(name)
    }

    fn apex(&self, kind: RecordType) -> Answer {
        let soa = self.soa();
        match kind {
            RecordType::SOA | RecordType::ANY => Answer {
                authoritative: true,
                recursion_available: true,
                ttl: soa.ttl,
                answers: vec![soa.data],
                ..Answer::default()
            },
            RecordType::NS => self.records(TTL_VIP, vec![RData::NS(NS(self.server()))]),
            _ => self.no(ResponseCode::NoError),
        }
    }

    /// The records; without any, NODATA.
    fn records(&self, ttl: u32, answers: Vec<RData>) -> Answer {
        if answers.is_empty() {
            return self.no(ResponseCode::NoError);
        }
        Answer { authoritative: true, recursion_available: true, ttl, answers, ..Answer::default() }
    }

    /// NODATA or NXDOMAIN.
    fn no(&self, code: ResponseCode) -> Answer {
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
            mailbox: self.within("hostmaster."),
            serial: u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(0),
            minimum: TTL_NEGATIVE,
        };
        Record::from_rdata(self.within(""), TTL_NEGATIVE, soa.into())
    }

    fn server(&self) -> Name {
        self.within("ns.")
    }

    /// A name within the zone, which was checked when the registry read it.
    fn within(&self, before: &str) -> Name {
        wire_name(&format!("{before}{}", self.zone)).unwrap_or_default()
    }
}

enum Special {
    /// The port of this name.
    Srv(String),
    /// Instances instead of the virtual address: one, or all.
    Instances(Option<String>),
    /// There are names below it only.
    Parent,
}

/// Addresses of the instances that take traffic, or of one whatever its health.
fn instances(resources: &Resources, service: &MeshService, id: Option<&str>) -> BTreeSet<IpAddr> {
    let clusters = service.ports.iter().flat_map(|port| &port.clusters);
    clusters
        .filter_map(|cluster| resources.endpoints.get(cluster))
        .flat_map(|assignment| &assignment.localities)
        .flat_map(|locality| &locality.endpoints)
        .filter(|endpoint| match id {
            Some(id) => endpoint.hostname == id,
            None => endpoint.health.takes_traffic(),
        })
        .filter_map(|endpoint| match &endpoint.address {
            pillion_model::endpoint::HostAddress::Socket(address) => Some(address.ip()),
            _ => None,
        })
        .collect()
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
