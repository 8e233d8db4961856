//! Answers that are ready as bytes, kept for as long as what they say is so.
//!
//! An answer depends on one service as it is registered, and on the resources. A new state of the
//! registry tells which services are not what they were in the last one: their answers are dropped, the
//! others still stand. So the cost of a change is that of one service's answers, whoever else is asked
//! for meanwhile. Names that do not exist are looked for each time, and not kept: there
//! is no end of them.
//!
//! What depends on who asks (SRV of instances in several zones), and names that are rarely asked for
//! (the zone itself, parents), are left to [`super::chain`].

use std::collections::HashMap;
use std::sync::Arc;

use pillion_dns::sample::Weights;
use pillion_dns::{Denial, Encoded, Fast, Plain, RData, Ready, RecordType, Records, ResponseCode, address};
use pillion_model::name::ServiceName;

use super::away::Away;
use super::names::{Found, Target, find};
use super::records::{locations, note};
use super::serving::{Select, Set};
use super::{Apex, Inner, TTL};
use crate::catalog::World;

/// One thread's answers.
pub(super) struct Answers {
    inner: Arc<Inner>,
    now: Option<Now>,
    /// What answers without a note say while the store is away.
    stale: Encoded,
    away: bool,
    kept: Keeper,
    key: Vec<u8>,
    text: String,
}

/// The state in force.
struct Now {
    view: Arc<World>,
    apex: Arc<Apex>,
    denial: Option<Denial>,
}

/// Answers that stand in the state in force.
#[derive(Default)]
struct Keeper {
    /// By name in lower case, with the type behind.
    answers: HashMap<Box<[u8]>, Kept>,
    /// The names of the answers that depend on a service.
    of: HashMap<ServiceName, Vec<Box<[u8]>>>,
    bytes: usize,
}

/// An answer.
struct Kept {
    /// What it depends on, beside the resources.
    service: ServiceName,
    /// No records: NODATA.
    records: Option<Records>,
    note: Option<Encoded>,
}

/// What a look at the state gives.
enum Made {
    Kept(Kept),
    /// No such name.
    Nothing,
    /// The general way knows.
    Other,
}

impl Answers {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self {
            inner,
            now: None,
            stale: Encoded::from(&Away::note()),
            away: false,
            kept: Keeper::default(),
            key: Vec::new(),
            text: String::new(),
        }
    }
}

impl Fast for Answers {
    fn refresh(&mut self) {
        self.away = self.inner.away.now();
        let Some(view) = (self.inner.current)() else { return self.now = None };
        match &self.now {
            Some(now) if Arc::ptr_eq(&now.view, &view) => return,
            Some(now) if Arc::ptr_eq(&now.view.resources, &view.resources) => {
                view.changed_since(&now.view).iter().for_each(|service| self.kept.drop_of(service));
            }
            _ => self.kept = Keeper::default(),
        }
        let apex = self.inner.apex(&view);
        let denial = Denial::new(&apex.zone_name, &apex.soa(), TTL);
        self.now = Some(Now { view, apex, denial });
    }

    fn find(&mut self, question: &Plain<'_>) -> Option<Ready<'_>> {
        let now = self.now.as_ref()?;
        let denial = now.denial.as_ref()?;
        let stale = self.away.then_some(&self.stale);
        self.key.clear();
        self.key.extend_from_slice(question.name());
        self.key.extend_from_slice(&u16::from(question.kind()).to_be_bytes());
        if !self.kept.answers.contains_key(&self.key[..]) {
            write_text(question.name(), &mut self.text);
            match now.make(&self.inner, &self.text, question.kind()) {
                Made::Other => return None,
                Made::Nothing => return Some(Ready::No(ResponseCode::NXDomain, denial, stale)),
                Made::Kept(kept) => self.kept.keep(&self.key, kept),
            }
        }
        let kept = self.kept.answers.get(&self.key[..])?;
        let note = kept.note.as_ref().or(stale);
        Some(match &kept.records {
            Some(records) => Ready::Yes(records, note),
            None => Ready::No(ResponseCode::NoError, denial, note),
        })
    }

    fn count(&self, code: ResponseCode) {
        self.inner.count_code(code);
    }
}

impl Now {
    /// Looks for a name, in lower case.
    fn make(&self, inner: &Inner, name: &str, kind: RecordType) -> Made {
        let rest = name.strip_suffix(&*self.apex.zone).and_then(|rest| rest.strip_suffix('.'));
        let Some(rest) = rest else { return Made::Other };
        let kept = |service: &ServiceName, set: Option<&Set>, records| Kept {
            service: service.clone(),
            records,
            note: set.and_then(note).as_ref().map(Encoded::from),
        };
        let set = |target: &Target, select| {
            inner.cache.set(&target.service, target.catalog.as_ref(), target.subset.as_ref(), select)
        };
        let all = |records: Vec<RData>, weights| {
            let records = records.into_iter().map(|record| (record, None));
            Records::new(TTL, records, weights).ok().filter(|records| !records.is_empty())
        };
        Made::Kept(match (find(&self.view, rest), kind) {
            (Found::Nothing, _) => return Made::Nothing,
            (Found::Set(target), RecordType::A | RecordType::AAAA) => {
                let set = set(&target, if kind == RecordType::A { Select::V4 } else { Select::V6 });
                let addresses = set.instances().iter().map(|one| address(one.address.to_canonical()));
                let records = all(addresses.collect(), Some(set.weights().clone()));
                kept(&target.service, Some(&set), records)
            }
            (Found::Port(target, port), RecordType::SRV) => {
                let set = set(&target, Select::Port(port.clone()));
                if set.several_zones {
                    return Made::Other;
                }
                let Some(located) = locations(&target, &port, &set, &self.apex.zone) else {
                    return Made::Other;
                };
                let weights = Weights::new(located.iter().map(|one| one.weight));
                let records = located.into_iter().map(|one| (RData::SRV(one.record), Some(one.address)));
                let records = Records::new(TTL, records, Some(weights)).ok();
                kept(&target.service, Some(&set), records.filter(|records| !records.is_empty()))
            }
            (Found::Instance(instance), RecordType::A | RecordType::AAAA) => {
                let ip = instance.address.to_canonical();
                let fits = ip.is_ipv4() == (kind == RecordType::A);
                let records = all(fits.then(|| address(ip)).into_iter().collect(), None);
                kept(&instance.service, None, records)
            }
            (Found::Set(target) | Found::Port(target, _), _) => kept(&target.service, None, None),
            (Found::Instance(instance), _) => kept(&instance.service, None, None),
            (Found::Parent | Found::Apex | Found::NameServer, _) => return Made::Other,
        })
    }
}

impl Keeper {
    fn keep(&mut self, name: &[u8], kept: Kept) {
        if self.bytes > KEPT_BYTES_MAX {
            *self = Self::default();
        }
        self.bytes += kept.bytes();
        self.of.entry(kept.service.clone()).or_default().push(name.into());
        self.answers.insert(name.into(), kept);
    }

    fn drop_of(&mut self, service: &ServiceName) {
        for name in self.of.remove(service).unwrap_or_default() {
            self.bytes -= self.answers.remove(&name).map_or(0, |kept| kept.bytes());
        }
    }
}

impl Kept {
    /// About how much memory this takes.
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.records.as_ref().map_or(0, Records::bytes)
    }
}

/// A name as it is looked up: its labels, in lower case already, with dots between.
fn write_text(name: &[u8], text: &mut String) {
    text.clear();
    let mut rest = name;
    while let Some((&len, behind)) = rest.split_first() {
        let (label, behind) = behind.split_at(usize::from(len).min(behind.len()));
        if label.is_empty() {
            return;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().copied().map(char::from)); // ASCII, as ordinary names are
        rest = behind;
    }
}

/// Memory for answers; beyond, all are made anew.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// An answer without its records, with its name in both maps.
const ENTRY_BYTES: usize = 400;
