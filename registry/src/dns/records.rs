//! The records of an answer.

use std::net::IpAddr;
use std::sync::Arc;

use pillion_dns::{
    Answer, NS, Name, RData, Reason, Record, RecordType, ResponseCode, Room, SRV, Soa, address, wire_name,
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
        let Some(names) = wire_name(&format!("inst.{}", target.service.dns_name(&self.apex.zone))) else {
            return self.apex.no(ResponseCode::NoError); // no room for instances below such a name
        };
        let drawn = set.draw(self.room.records_max(SRV_FIXED_BYTES + names.len()), near.map(|zone| &**zone));
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        for (instance, priority) in drawn {
            let Some(port) = instance.ports.get(port) else { continue };
            let Ok(name) = names.prepend_label(instance.id.as_str()) else { continue };
            additional.push(glue(&name, instance.address.to_canonical()));
            let weight = u16::try_from(instance.weight).unwrap_or(u16::MAX);
            answers.push(RData::SRV(SRV::new(priority, weight, port.port, name)));
        }
        Answer { additional, ..self.drawn(&set, answers) }
    }

    fn instances(&self, target: &Target, select: Select) -> Arc<Set> {
        self.inner.cache.set(&target.service, target.catalog.as_ref(), target.subset.as_ref(), select)
    }

    /// The records drawn from a set, or "there are none", and what is odd about that.
    fn drawn(&self, set: &Set, answers: Vec<RData>) -> Answer {
        if answers.is_empty() {
            let no = self.apex.no(ResponseCode::NoError);
            return match set.out_of_service {
                0 => no,
                count => no.noting(Reason::Other, format!("none of {count} instances takes traffic")),
            };
        }
        let answer = Answer { more: answers.len() < set.len(), ..yes(answers) };
        if set.stale {
            return answer.noting(Reason::StaleAnswer, "every instance is silent; these served last");
        }
        answer
    }
}

impl Apex {
    /// NXDOMAIN or NODATA, with the SOA that says for how long that may be kept.
    pub(super) fn no(&self, code: ResponseCode) -> Answer {
        let soa = Record::from_rdata(self.zone_name.clone(), TTL, self.soa().into());
        Answer { code, authoritative: true, authority: vec![soa], ..Answer::default() }
    }

    fn soa(&self) -> Soa {
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
