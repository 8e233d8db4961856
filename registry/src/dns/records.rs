//! The records of an answer.

use std::net::IpAddr;
use std::sync::Arc;

use pillion_dns::{
    Answer, NS, Name, Note, RData, Reason, Record, RecordType, ResponseCode, Room, SRV, Soa, address,
    wire_name,
};
use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;

use super::names::Target;
use super::serving::{Select, Set};
use super::{Apex, Inner, TTL};

/// Makes the records of one answer.
pub(super) struct Records<'a> {
    pub(super) inner: &'a Inner,
    pub(super) apex: &'a Apex,
    pub(super) kind: RecordType,
    pub(super) room: Room,
}

impl Records<'_> {
    pub(super) fn apex(&self) -> Answer {
        match self.kind {
            RecordType::SOA | RecordType::ANY => yes(vec![self.apex.soa().into()]),
            RecordType::NS => Answer {
                additional: self.inner.addresses.iter().map(|ip| glue(&self.apex.name_server, *ip)).collect(),
                ..yes(vec![RData::NS(NS(self.apex.name_server.clone()))])
            },
            _ => self.apex.no(ResponseCode::NoError),
        }
    }

    /// A and AAAA of a few known addresses.
    pub(super) fn addresses_of(&self, addresses: &[IpAddr]) -> Answer {
        let fits = |ip: &IpAddr| match self.kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        };
        let canonical = addresses.iter().map(IpAddr::to_canonical);
        let answers: Vec<RData> = canonical.filter(fits).map(address).collect();
        if answers.is_empty() { self.apex.no(ResponseCode::NoError) } else { yes(answers) }
    }

    /// A and AAAA of instances drawn by weight.
    pub(super) fn set(&self, target: &Target) -> Answer {
        let select = match self.kind {
            RecordType::A => Select::V4,
            RecordType::AAAA => Select::V6,
            // RFC 8482: one of the kinds there are will do.
            RecordType::ANY if !self.instances(target, Select::V4).is_empty() => Select::V4,
            RecordType::ANY => Select::V6,
            _ => return self.apex.no(ResponseCode::NoError),
        };
        let bytes = if select == Select::V4 { 4 } else { 16 };
        let set = self.instances(target, select);
        let drawn = set.draw(self.room.records_max(bytes), None);
        let answers = drawn.iter().map(|(one, _)| address(one.address.to_canonical())).collect();
        self.drawn(&set, answers)
    }

    /// Whether a port's instances are in more than one zone.
    pub(super) fn in_several_zones(&self, target: &Target, port: &str) -> bool {
        [RecordType::SRV, RecordType::ANY].contains(&self.kind)
            && self.instances(target, Select::Port(port.to_owned())).several_zones
    }

    /// SRV of instances drawn by weight, those in zone `near` first, with their addresses beside.
    pub(super) fn services(&self, target: &Target, port: &str, near: Option<&Arc<str>>) -> Answer {
        if ![RecordType::SRV, RecordType::ANY].contains(&self.kind) {
            return self.apex.no(ResponseCode::NoError);
        }
        let set = self.instances(target, Select::Port(port.to_owned()));
        let Some(names) = Names::below(target, &self.apex.zone) else {
            return self.apex.no(ResponseCode::NoError); // no room for instances below such a name
        };
        let room = self.room.records_max(SRV_FIXED_BYTES + names.0.len());
        let drawn = set.draw(room, near.map(|zone| &**zone));
        let located: Vec<Location> = drawn
            .iter()
            .filter_map(|(instance, priority)| names.location(instance, port, *priority))
            .collect();
        let additional = located
            .iter()
            .map(|one| Record::from_rdata(one.record.target.clone(), TTL, one.address.clone()))
            .collect();
        let answers = located.into_iter().map(|one| RData::SRV(one.record)).collect();
        Answer { additional, ..self.drawn(&set, answers) }
    }

    fn instances(&self, target: &Target, select: Select) -> Arc<Set> {
        self.inner.cache.set(&target.service, target.catalog.as_ref(), target.subset.as_ref(), select)
    }

    /// The records drawn from a set, or "there are none", and what is odd about that.
    fn drawn(&self, set: &Set, answers: Vec<RData>) -> Answer {
        let answer = match answers.is_empty() {
            true => self.apex.no(ResponseCode::NoError),
            false => Answer { more: answers.len() < set.len(), ..yes(answers) },
        };
        Answer { note: note(set), ..answer }
    }
}

/// What is odd about a set.
pub(super) fn note(set: &Set) -> Option<Note> {
    if set.stale {
        return Some(Note::new(Reason::StaleAnswer, "every instance is silent; these served last"));
    }
    let count = Some(set.out_of_service).filter(|count| *count > 0 && set.is_empty())?;
    Some(Note::new(Reason::Other, format!("none of {count} instances takes traffic")))
}

/// A port of one instance.
pub(super) struct Location {
    pub(super) record: SRV,
    /// Content of the address record of the target.
    pub(super) address: RData,
    pub(super) weight: u32,
}

/// All instances of a set with a port, none nearer than another; `None` where DNS has no room for
/// names below the service's.
pub(super) fn locations(target: &Target, port: &str, set: &Set, zone: &str) -> Option<Vec<Location>> {
    let names = Names::below(target, zone)?;
    Some(set.instances().iter().filter_map(|instance| names.location(instance, port, 0)).collect())
}

/// Names of a service's instances.
struct Names(Name);

impl Names {
    fn below(target: &Target, zone: &str) -> Option<Self> {
        wire_name(&format!("inst.{}", target.service.dns_name(zone))).map(Self)
    }

    fn location(&self, instance: &Instance, port: &str, priority: u16) -> Option<Location> {
        let port = instance.ports.get(port)?.port;
        let name = self.0.prepend_label(instance.id.as_str()).ok()?;
        let weight = u16::try_from(instance.weight).unwrap_or(u16::MAX);
        Some(Location {
            record: SRV::new(priority, weight, port, name),
            address: address(instance.address.to_canonical()),
            weight: instance.weight,
        })
    }
}

impl Apex {
    /// NXDOMAIN or NODATA, with the SOA that says for how long that may be kept.
    pub(super) fn no(&self, code: ResponseCode) -> Answer {
        let soa = Record::from_rdata(self.zone_name.clone(), TTL, self.soa().into());
        Answer { code, authoritative: true, authority: vec![soa], ..Answer::default() }
    }

    pub(super) fn soa(&self) -> Soa {
        Soa {
            server: self.name_server.clone(),
            mailbox: self.mailbox.clone(),
            // Serial numbers are compared modulo 2^32 (RFC 1982).
            serial: u32::try_from(self.revision & u64::from(u32::MAX)).unwrap_or_default(),
            minimum: TTL,
        }
    }
}

pub(super) fn yes(answers: Vec<RData>) -> Answer {
    Answer { authoritative: true, ttl: TTL, answers, ..Answer::default() }
}

fn glue(owner: &Name, ip: IpAddr) -> Record {
    Record::from_rdata(owner.clone(), TTL, address(ip))
}

/// The DNS name of one instance; `None` where it is too long for one.
pub(super) fn instance_name(service: &ServiceName, instance: &Instance, zone: &str) -> Option<Name> {
    wire_name(&format!("{}.inst.{}", instance.id, service.dns_name(zone)))
}

/// Three numbers and the shortest instance label.
const SRV_FIXED_BYTES: usize = 9;
