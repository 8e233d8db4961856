//! The order in which an answer comes about, in one list.

use std::net::IpAddr;
use std::sync::Arc;

use pillion_dns::{
    Answer, DNSClass, NS, Name, Outcome, PTR, Question, RData, Record, RecordType, Reply, ResponseCode, SRV,
    Soa, address, wire_name,
};
use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;

use super::names::{Found, Target, find};
use super::reverse::Lookup;
use super::serving::{Select, Set};
use super::{Apex, Inner, TTL};
use crate::catalog::World;

/// Answers a question.
pub(super) fn answer(inner: &Arc<Inner>, question: &Question<'_>) -> Reply {
    let Some(view) = (inner.current)() else {
        return inner.count(Answer::code(ResponseCode::ServFail)).into(); // nothing loaded yet
    };
    if ![DNSClass::IN, DNSClass::ANY].contains(&question.class)
        || [RecordType::AXFR, RecordType::IXFR].contains(&question.kind)
    {
        return inner.count(Answer::code(ResponseCode::Refused)).into();
    }
    let apex = inner.apex(&view);
    if let Some(rest) = question.name.within(&apex.zone) {
        let answer = in_zone(inner, &view, &apex, question, rest);
        return inner.count(answer).into();
    }
    if let Some(address) = question.name.reverse_address() {
        return reverse(inner, &view, &apex, question.kind, address);
    }
    inner.count(Answer::code(ResponseCode::Refused)).into() // another zone
}

fn in_zone(inner: &Inner, view: &Arc<World>, apex: &Apex, question: &Question<'_>, rest: &str) -> Answer {
    let records = Records { inner, apex, question };
    match find(view, rest) {
        Found::Nothing => apex.no(ResponseCode::NXDomain),
        Found::Parent => apex.no(ResponseCode::NoError),
        Found::Apex => records.apex(),
        Found::NameServer => records.addresses_of(&inner.addresses),
        Found::Instance(instance) => records.addresses_of(&[instance.address]),
        Found::Set(target) => records.set(&target),
        Found::Port(target, port) => records.services(&target, &port),
    }
}

fn reverse(
    inner: &Arc<Inner>,
    view: &Arc<World>,
    apex: &Arc<Apex>,
    kind: RecordType,
    address: IpAddr,
) -> Reply {
    let finish = move |inner: &Inner, apex: &Apex, names: Vec<Name>| {
        inner.count(if names.is_empty() {
            Answer::code(ResponseCode::Refused) // not an address of ours: another server may know
        } else if [RecordType::PTR, RecordType::ANY].contains(&kind) {
            yes(names.into_iter().map(|name| RData::PTR(PTR(name))).collect())
        } else {
            apex.no(ResponseCode::NoError)
        })
    };
    match inner.reverse.lookup(view, address) {
        Lookup::Known(names) => finish(inner, apex, names).into(),
        Lookup::Stale => {
            let (inner, view, apex) = (Arc::clone(inner), Arc::clone(view), Arc::clone(apex));
            Reply::Later(Box::pin(async move {
                let names = {
                    let (inner, apex) = (Arc::clone(&inner), Arc::clone(&apex));
                    tokio::task::spawn_blocking(move || inner.reverse.rebuild(&view, &apex.zone, address))
                        .await
                };
                Outcome::Answer(match names {
                    Ok(names) => finish(&inner, &apex, names),
                    Err(_) => inner.count(Answer::code(ResponseCode::ServFail)),
                })
            }))
        }
    }
}

/// Makes the records of one answer.
struct Records<'a> {
    inner: &'a Inner,
    apex: &'a Apex,
    question: &'a Question<'a>,
}

impl Records<'_> {
    fn apex(&self) -> Answer {
        match self.question.kind {
            RecordType::SOA | RecordType::ANY => yes(vec![self.apex.soa().into()]),
            RecordType::NS => Answer {
                additional: self.inner.addresses.iter().map(|ip| glue(&self.apex.name_server, *ip)).collect(),
                ..yes(vec![RData::NS(NS(self.apex.name_server.clone()))])
            },
            _ => self.apex.no(ResponseCode::NoError),
        }
    }

    /// A and AAAA of a few known addresses.
    fn addresses_of(&self, addresses: &[IpAddr]) -> Answer {
        let fits = |ip: &IpAddr| match self.question.kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        };
        let canonical = addresses.iter().map(IpAddr::to_canonical);
        self.some(canonical.filter(fits).map(address).collect(), false)
    }

    /// A and AAAA of instances drawn by weight.
    fn set(&self, target: &Target) -> Answer {
        let select = match self.question.kind {
            RecordType::A => Select::V4,
            RecordType::AAAA => Select::V6,
            // RFC 8482: one of the kinds there are will do.
            RecordType::ANY if !self.instances(target, Select::V4).is_empty() => Select::V4,
            RecordType::ANY => Select::V6,
            _ => return self.apex.no(ResponseCode::NoError),
        };
        let bytes = if select == Select::V4 { 4 } else { 16 };
        let set = self.instances(target, select);
        let drawn = set.draw(self.question.records_max(bytes));
        let more = drawn.len() < set.len();
        self.some(drawn.iter().map(|one| address(one.address.to_canonical())).collect(), more)
    }

    /// SRV of instances drawn by weight, with their addresses beside.
    fn services(&self, target: &Target, port: &str) -> Answer {
        if ![RecordType::SRV, RecordType::ANY].contains(&self.question.kind) {
            return self.apex.no(ResponseCode::NoError);
        }
        let set = self.instances(target, Select::Port(port.to_owned()));
        let Some(names) = wire_name(&format!("inst.{}", target.service.dns_name(&self.apex.zone))) else {
            return self.apex.no(ResponseCode::NoError); // no room for instances below such a name
        };
        let drawn = set.draw(self.question.records_max(SRV_FIXED_BYTES + names.len()));
        let more = drawn.len() < set.len();
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        for instance in drawn {
            let Some(port) = instance.ports.get(port) else { continue };
            let Ok(name) = names.prepend_label(instance.id.as_str()) else { continue };
            additional.push(glue(&name, instance.address.to_canonical()));
            let weight = u16::try_from(instance.weight).unwrap_or(u16::MAX);
            answers.push(RData::SRV(SRV::new(0, weight, port.port, name)));
        }
        Answer { additional, ..self.some(answers, more) }
    }

    fn instances(&self, target: &Target, select: Select) -> Arc<Set> {
        self.inner.cache.set(&target.service, target.catalog.as_ref(), target.subset.as_ref(), select)
    }

    /// The records, or "there are none".
    fn some(&self, answers: Vec<RData>, more: bool) -> Answer {
        if answers.is_empty() {
            return self.apex.no(ResponseCode::NoError);
        }
        Answer { more, ..yes(answers) }
    }
}

impl Apex {
    /// NXDOMAIN or NODATA, with the SOA that says for how long that may be kept.
    fn no(&self, code: ResponseCode) -> Answer {
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

fn yes(answers: Vec<RData>) -> Answer {
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
