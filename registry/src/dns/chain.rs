//! The order in which an answer comes about, in one list.

use std::net::IpAddr;
use std::sync::Arc;

use pillion_dns::{Answer, DNSClass, PTR, Question, RData, Reason, RecordType, Reply, ResponseCode};

use super::names::{Found, find};
use super::records::{Records, yes};
use super::reverse::{Host, Lookup};
use super::{Apex, Inner};
use crate::catalog::World;

/// Answers a question.
pub(super) fn answer(inner: &Arc<Inner>, question: &Question<'_>) -> Reply {
    let Some(view) = (inner.current)() else {
        let text = "the registry has not loaded its state yet";
        return inner.count(Answer::code(ResponseCode::ServFail).noting(Reason::NotReady, text)).into();
    };
    if let Some(answer) = unsupported(question) {
        return inner.count(answer).into();
    }
    let apex = inner.apex(&view);
    if let Some(rest) = question.name.within(&apex.zone) {
        return in_zone(inner, &view, &apex, question, rest);
    }
    if let Some(address) = question.name.reverse_address() {
        return reverse(inner, view, apex, question, address);
    }
    let elsewhere = inner.elsewhere.as_ref().and_then(|elsewhere| elsewhere.ask(question));
    elsewhere.unwrap_or_else(|| {
        let text = format!("this server answers {}", apex.zone);
        inner.count(Answer::code(ResponseCode::Refused).noting(Reason::NotAuthoritative, text)).into()
    })
}

/// What is refused whatever the name.
fn unsupported(question: &Question<'_>) -> Option<Answer> {
    let refused = Answer::code(ResponseCode::Refused);
    if ![DNSClass::IN, DNSClass::ANY].contains(&question.class) {
        return Some(refused.noting(Reason::NotSupported, "only class IN is answered"));
    }
    if [RecordType::AXFR, RecordType::IXFR].contains(&question.kind) {
        return Some(refused.noting(Reason::Prohibited, "the zone cannot be transferred"));
    }
    None
}

fn in_zone(
    inner: &Arc<Inner>,
    view: &Arc<World>,
    apex: &Arc<Apex>,
    question: &Question<'_>,
    rest: &str,
) -> Reply {
    let records = Records { inner, apex, kind: question.kind, room: question.room() };
    let answer = match find(view, rest) {
        Found::Nothing => apex.no(ResponseCode::NXDomain),
        Found::Parent => apex.no(ResponseCode::NoError),
        Found::Apex => records.apex(),
        Found::NameServer => records.addresses_of(&inner.addresses),
        Found::Instance(instance) => records.addresses_of(&[instance.address]),
        Found::Set(target) => records.set(&target),
        // Where instances are in several zones, those in the client's come first.
        Found::Port(target, port) if records.in_several_zones(&target, &port) => {
            let (kind, room) = (question.kind, question.room());
            return with_host(inner, view, apex, question.client.ip(), move |inner, apex, client| {
                let records = Records { inner, apex, kind, room };
                let near = Some(&client.zone).filter(|zone| !zone.is_empty());
                inner.count(records.services(&target, &port, near)).into()
            });
        }
        Found::Port(target, port) => records.services(&target, &port, None),
    };
    inner.count(answer).into()
}

fn reverse(
    inner: &Arc<Inner>,
    view: Arc<World>,
    apex: Arc<Apex>,
    question: &Question<'_>,
    address: IpAddr,
) -> Reply {
    let kind = question.kind;
    let elsewhere = inner.elsewhere.as_ref().and_then(|elsewhere| elsewhere.ask(question));
    with_host(inner, &view, &apex, address, move |inner, apex, host| {
        let answer = if host.names.is_empty() {
            if let Some(elsewhere) = elsewhere {
                return elsewhere;
            }
            let text = "no instance has this address"; // another server may know
            Answer::code(ResponseCode::Refused).noting(Reason::NotAuthoritative, text)
        } else if [RecordType::PTR, RecordType::ANY].contains(&kind) {
            yes(host.names.into_iter().map(|name| RData::PTR(PTR(name))).collect())
        } else {
            apex.no(ResponseCode::NoError)
        };
        inner.count(answer).into()
    })
}

/// Answers by what is known of an address, which may have to be looked up aside.
fn with_host(
    inner: &Arc<Inner>,
    view: &Arc<World>,
    apex: &Arc<Apex>,
    address: IpAddr,
    answer: impl FnOnce(&Inner, &Apex, Host) -> Reply + Send + 'static,
) -> Reply {
    if let Lookup::Known(host) = inner.reverse.lookup(view, address) {
        return answer(inner, apex, host);
    }
    let (inner, view, apex) = (Arc::clone(inner), Arc::clone(view), Arc::clone(apex));
    Reply::Later(Box::pin(async move {
        let (indexing, zone) = (Arc::clone(&inner), Arc::clone(&apex));
        let made =
            tokio::task::spawn_blocking(move || indexing.reverse.rebuild(&view, &zone.zone, address)).await;
        let reply = match made {
            Ok(host) => answer(&inner, &apex, host),
            Err(_) => inner.count(Answer::code(ResponseCode::ServFail)).into(),
        };
        match reply {
            Reply::Now(outcome) => outcome,
            Reply::Later(outcome) => outcome.await,
        }
    }))
}
