//! Subsets: which of a cluster's endpoints are chosen from, by the labels that a route asks for.
//!
//! Routes tell their cluster what they ask for when they are compiled, and get a number. What the
//! number means is arranged whenever endpoints change, so a request finds its endpoints by index.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use arc_swap::ArcSwap;
use pillion_model::endpoint::Endpoint;
use pillion_model::metadata::Fields;
use pillion_model::subset::{Reason, Step, SubsetLocalityWeights, Subsets};

use super::balance::{Balance, Choice, Draw, LocalityHosts, Rules, Turns};
use super::hosts::Host;
use super::state::ClusterStats;

/// What routes ask a cluster for; its number stands for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection(usize);

/// Everything that routes ask a cluster for, by number. The first one asks for nothing.
pub(super) struct Selections {
    asked: ArcSwap<Vec<Fields>>,
    grown: AtomicBool,
}

/// The endpoints of a cluster in their subsets, as far as anybody asks for them.
pub(super) struct SubsetHosts {
    balances: Vec<Balance>,
    /// By number of selection: balances to try.
    plans: Vec<Vec<(usize, Reason)>>,
    /// Every subset that has endpoints, whether anybody asks for it or not.
    present: BTreeSet<String>,
}

/// What subsets are made from.
pub(super) struct Parts<'a> {
    pub(super) rules: Rules<'a>,
    pub(super) hosts: &'a [Host],
    /// What each host was made from.
    pub(super) endpoints: &'a [&'a Endpoint],
    pub(super) localities: &'a [LocalityHosts],
}

impl Default for Selections {
    fn default() -> Self {
        Self { asked: ArcSwap::from_pointee(vec![Fields::new()]), grown: AtomicBool::new(false) }
    }
}

impl Selections {
    /// The number of `criteria`; one that is new counts from the next arrangement on.
    pub(super) fn add(&self, criteria: &Fields) -> Selection {
        if let Some(known) = self.find(criteria) {
            return known;
        }
        self.asked.rcu(|asked| {
            let mut asked = Vec::clone(asked);
            if !asked.contains(criteria) {
                asked.push(criteria.clone());
            }
            asked
        });
        self.grown.store(true, Relaxed);
        self.find(criteria).unwrap_or_default()
    }

    pub(super) fn find(&self, criteria: &Fields) -> Option<Selection> {
        self.asked.load().iter().position(|asked| asked == criteria).map(Selection)
    }

    /// Whether there are new ones since the last time this was asked.
    pub(super) fn have_grown(&self) -> bool {
        self.grown.swap(false, AcqRel)
    }

    pub(super) fn all(&self) -> Arc<Vec<Fields>> {
        self.asked.load_full()
    }
}

impl SubsetHosts {
    pub(super) fn arrange(subsets: &Subsets, asked: &[Fields], parts: &Parts<'_>) -> Self {
        let exists = |labels: &Fields| parts.endpoints.iter().any(|endpoint| subsets.has(endpoint, labels));
        let mut made: Vec<(Fields, bool)> = Vec::new();
        let mut arranged = Self {
            balances: Vec::new(),
            plans: Vec::with_capacity(asked.len()),
            present: parts
                .endpoints
                .iter()
                .flat_map(|it| subsets.of(it))
                .map(|it| format!("{it:?}"))
                .collect(),
        };
        for criteria in asked {
            let mut plan = Vec::new();
            for step in subsets.plan(criteria, &exists) {
                let Step { labels, single_host, reason } = step;
                let key = (labels, single_host);
                let at = made.iter().position(|it| *it == key).unwrap_or_else(|| {
                    let first = arranged.balances.last().map_or(0, Balance::end);
                    arranged.balances.push(parts.balance(subsets, &key.0, single_host, first));
                    made.push(key);
                    made.len() - 1
                });
                plan.push((at, reason));
            }
            arranged.plans.push(plan);
        }
        arranged
    }

    pub(super) fn pick(
        &self,
        selection: Selection,
        hosts: &[Host],
        turns: &mut Turns,
        draw: &Draw<'_>,
        stats: &ClusterStats,
    ) -> Option<Choice> {
        for (at, reason) in self.plans.get(selection.0)? {
            let choice = self.balances[*at].pick(hosts, turns, draw);
            let counter = match reason {
                Reason::Selected => Some(&stats.lb_subsets_selected),
                Reason::Fallback => choice.is_some().then_some(&stats.lb_subsets_fallback),
                Reason::Panic => choice.is_some().then_some(&stats.lb_subsets_fallback_panic),
                Reason::SelectorFallback => None,
            };
            if let Some(counter) = counter {
                counter.fetch_add(1, Relaxed);
            }
            if choice.is_some() {
                return choice;
            }
        }
        None
    }

    /// Counts what came and went since `old`.
    pub(super) fn count(&self, old: Option<&Self>, stats: &ClusterStats) {
        let none = BTreeSet::new();
        let had = old.map_or(&none, |old| &old.present);
        stats.lb_subsets_created.fetch_add(self.present.difference(had).count() as u64, Relaxed);
        stats.lb_subsets_removed.fetch_add(had.difference(&self.present).count() as u64, Relaxed);
        stats.lb_subsets_active.store(self.present.len() as u64, Relaxed);
    }
}

impl Parts<'_> {
    fn balance(&self, subsets: &Subsets, labels: &Fields, single_host: bool, first: usize) -> Balance {
        let mut found = false;
        let mut is_member = |at: u32| {
            let is_member = !(single_host && found) && subsets.has(self.endpoints[at as usize], labels);
            found |= is_member;
            is_member
        };
        let mut part = |whole: &LocalityHosts| {
            let members: Vec<u32> = whole.members.iter().copied().filter(|&at| is_member(at)).collect();
            let weight = whole.weight.and_then(|weight| match subsets.locality_weights {
                SubsetLocalityWeights::Ignored => None,
                SubsetLocalityWeights::Kept => Some(weight),
                SubsetLocalityWeights::Scaled => Some(scaled(weight, members.len(), whole.members.len())),
            });
            LocalityHosts { weight, priority: whole.priority, members }
        };
        let localities: Vec<LocalityHosts> = self.localities.iter().map(&mut part).collect();
        Balance::arrange(self.rules, self.hosts, &localities, first)
    }
}

/// A locality's weight by its share of endpoints, at least 1 where there are any.
fn scaled(weight: u32, members: usize, of: usize) -> u32 {
    if members == 0 {
        return 0;
    }
    let scaled = (f64::from(weight) * members as f64 / of as f64).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most `weight`")]
    (scaled as u32).max(1)
}
