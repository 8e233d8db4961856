//! Chooses an endpoint: priority, then health tier, then locality, then the policy's choice.
//!
//! Everything that can be is arranged when endpoints change; a choice reads it, the endpoints'
//! counters, and its worker's turn.

mod edf;
mod hash;
mod priority;

use pillion_model::cluster::{LoadBalancing, SlowStart};
use tokio::time::Instant;

pub(crate) use priority::{Counts, Loads, Source};

use super::hosts::Host;
use edf::Edf;
use hash::{Entry, Table};

/// How the endpoints of a cluster are chosen from.
#[derive(Default)]
pub(crate) struct Balance {
    policy: LoadBalancing,
    slow: Option<Slow>,
    loads: Loads,
    levels: Vec<Level>,
    /// The number of groups, and of those of other balances before.
    groups: usize,
}

/// One priority: groups of endpoints per source.
#[derive(Default)]
struct Level {
    healthy: Tier,
    degraded: Tier,
    all: Tier,
}

/// Groups with running sums of their locality's weights; one group where localities have none.
#[derive(Default)]
struct Tier {
    groups: Vec<(u64, Group)>,
}

struct Group {
    /// Places in the list of hosts.
    members: Box<[u32]>,
    equal_weights: bool,
    /// Whose turn it is, in a worker's list.
    slot: usize,
    table: Option<Table>,
}

/// Slow start, while an endpoint may be in it.
#[derive(Clone, Copy)]
struct Slow {
    config: SlowStart,
    /// When the last endpoint is through.
    until: Instant,
}

/// One worker's turns, by group.
#[derive(Default)]
pub(crate) struct Turns(Vec<Option<Turn>>);

enum Turn {
    Next(usize),
    Weighted(Edf),
}

/// A locality at one priority, for arranging.
pub(crate) struct LocalityHosts {
    pub(crate) weight: Option<u32>,
    pub(crate) priority: u32,
    /// Places in the list of hosts.
    pub(crate) members: Vec<u32>,
}

/// What a cluster says of choosing.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) policy: &'a LoadBalancing,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) now: Instant,
    /// Percent, usually 140.
    pub(crate) overprovisioning: u32,
    /// Percent.
    pub(crate) panic_threshold: u32,
}

/// What a choice depends on besides the endpoints.
pub(crate) struct Draw<'a> {
    pub(crate) hash: Option<u64>,
    /// Further draws to avoid endpoints.
    pub(crate) redraws: u32,
    /// The priority and its endpoints, where an aggregate has chosen.
    pub(crate) level: Option<(usize, Source)>,
    pub(crate) avoid: &'a dyn Fn(&Host) -> bool,
    /// Whether the request has failed elsewhere.
    pub(crate) again: bool,
    pub(crate) now: Instant,
}

/// An endpoint's place, and whether panic chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) at: usize,
    pub(crate) panic: bool,
}

impl Balance {
    /// Arranges `hosts` in their `localities`. A worker's turns are its own from place `first` on.
    pub(crate) fn arrange(
        rules: Rules<'_>,
        hosts: &[Host],
        localities: &[LocalityHosts],
        first: usize,
    ) -> Self {
        let Rules { policy, overprovisioning, panic_threshold, .. } = rules;
        let of_level = |level: usize| -> Vec<&LocalityHosts> {
            localities.iter().filter(|it| it.priority as usize == level).collect()
        };
        let counts = Counts::by_level(hosts, localities);
        let count = counts.len();
        let mut balance = Self {
            policy: policy.clone(),
            slow: Slow::of(rules, hosts),
            loads: Loads::share(&counts, overprovisioning, panic_threshold),
            levels: Vec::with_capacity(count),
            groups: first,
        };
        for level in 0..count {
            let localities = of_level(level);
            let panic = balance.loads.panic[level];
            let arranged = Level {
                healthy: balance.tier(hosts, &localities, Host::is_healthy, Some(overprovisioning)),
                degraded: balance.tier(hosts, &localities, Host::is_degraded, Some(overprovisioning)),
                all: if panic { balance.tier(hosts, &localities, |_| true, None) } else { Tier::default() },
            };
            balance.levels.push(arranged);
        }
        balance
    }

    /// The place after its last turn.
    pub(crate) fn end(&self) -> usize {
        self.groups
    }

    /// One tier of one priority. Localities count by weight and availability, except in panic.
    fn tier(
        &mut self,
        hosts: &[Host],
        localities: &[&LocalityHosts],
        usable: impl Fn(&Host) -> bool,
        overprovisioning: Option<u32>,
    ) -> Tier {
        let weighted = overprovisioning.is_some() && localities.iter().any(|it| it.weight.is_some());
        let members = |it: &LocalityHosts| -> Vec<u32> {
            it.members.iter().copied().filter(|&at| usable(&hosts[at as usize])).collect()
        };
        if !weighted || self.is_hashing() {
            let weight = |it: &LocalityHosts| if weighted { it.weight.unwrap_or(0) } else { 1 };
            let parts: Vec<(u32, Vec<u32>)> = localities.iter().map(|it| (weight(it), members(it))).collect();
            return Tier { groups: vec![(1, self.group(hosts, &parts, weighted))] };
        }
        let mut sum = 0;
        let mut groups = Vec::new();
        for locality in localities {
            let members = members(locality);
            let available = members.len() as u64 * u64::from(overprovisioning.unwrap_or(100));
            let available = (available / (locality.members.len() as u64).max(1)).min(100);
            let weight = u64::from(locality.weight.unwrap_or(0)) * available;
            if weight > 0 {
                sum += weight;
                groups.push((sum, self.group(hosts, &[(1, members)], false)));
            }
        }
        Tier { groups }
    }

    fn group(&mut self, hosts: &[Host], parts: &[(u32, Vec<u32>)], by_locality: bool) -> Group {
        let slot = self.groups;
        self.groups += 1;
        let members: Box<[u32]> = parts.iter().flat_map(|(_, members)| members.iter().copied()).collect();
        let mut weights = members.iter().map(|&at| hosts[at as usize].weight);
        let first = weights.next();
        let equal_weights = self.slow.is_none() && weights.all(|weight| Some(weight) == first);
        let table = self.is_hashing().then(|| self.table(hosts, parts, by_locality));
        Group { members, equal_weights, slot, table }
    }

    fn table(&self, hosts: &[Host], parts: &[(u32, Vec<u32>)], by_locality: bool) -> Table {
        let host_weight = |at: &u32| f64::from(hosts[*at as usize].weight);
        let part_weight = |(weight, members): &(u32, Vec<u32>)| {
            if by_locality { f64::from(*weight) } else { members.iter().map(host_weight).sum() }
        };
        let filled = || parts.iter().filter(|(_, members)| !members.is_empty());
        let total: f64 = filled().map(part_weight).sum();
        let mut keys = Vec::new();
        for part in filled() {
            let share = part_weight(part) / total;
            let sum: f64 = part.1.iter().map(host_weight).sum();
            for at in &part.1 {
                keys.push((hosts[*at as usize].endpoint.address.to_string(), share * host_weight(at) / sum));
            }
        }
        let entries: Vec<Entry<'_>> = keys.iter().map(|(key, share)| Entry { key, share: *share }).collect();
        match self.policy {
            LoadBalancing::Maglev { table_size } => Table::maglev(&entries, table_size),
            LoadBalancing::RingHash { size_min, size_max } => Table::ring(&entries, size_min, size_max),
            _ => unreachable!("only hashing policies have a table"),
        }
    }

    fn is_hashing(&self) -> bool {
        matches!(self.policy, LoadBalancing::RingHash { .. } | LoadBalancing::Maglev { .. })
    }

    /// A host's weight at a moment.
    fn weight(&self, host: &Host, now: Instant) -> f64 {
        let weight = f64::from(host.weight);
        match (self.slow, host.well_since) {
            (Some(slow), Some(since)) if now <= slow.until => {
                weight * slow.config.factor(now.saturating_duration_since(since))
            }
            _ => weight,
        }
    }

    /// Chooses; the last draw stands even if it is one to avoid.
    pub(crate) fn pick(&self, hosts: &[Host], turns: &mut Turns, draw: &Draw<'_>) -> Option<Choice> {
        let mut choice = None;
        for attempt in 0..=draw.redraws {
            choice = self.pick_once(hosts, turns, draw, attempt);
            let Some(Choice { at, .. }) = choice else { break };
            if !(draw.avoid)(&hosts[at]) {
                break;
            }
        }
        choice
    }

    fn pick_once(&self, hosts: &[Host], turns: &mut Turns, draw: &Draw<'_>, attempt: u32) -> Option<Choice> {
        let hash = draw.hash.filter(|_| self.is_hashing()).unwrap_or_else(|| fastrand::u64(..));
        let (level, source) = match draw.level {
            None => self.loads.choose(hash),
            Some((level, _)) if self.loads.panic.get(level) == Some(&true) => (level, Source::All),
            Some(chosen) => chosen,
        };
        let level = self.levels.get(level)?;
        let tier = match source {
            Source::Healthy => &level.healthy,
            Source::Degraded => &level.degraded,
            Source::All => &level.all,
        };
        let group = tier.draw()?;
        let at = match &group.table {
            Some(table) => group.members[table.find(hash, attempt)? as usize],
            None => group.draw(self, hosts, turns, draw)?,
        };
        Some(Choice { at: at as usize, panic: source == Source::All })
    }
}

impl Slow {
    /// `None` where every endpoint is through.
    fn of(rules: Rules<'_>, hosts: &[Host]) -> Option<Self> {
        let config = rules.slow_start?;
        let last = hosts.iter().filter(|host| host.is_healthy()).filter_map(|host| host.well_since).max()?;
        let until = last + config.window;
        (rules.now <= until).then_some(Self { config, until })
    }
}

impl Tier {
    fn draw(&self) -> Option<&Group> {
        if let [(_, only)] = &self.groups[..] {
            return Some(only);
        }
        let (sum, _) = self.groups.last()?;
        let draw = fastrand::u64(..sum);
        self.groups.iter().find(|(sum, _)| draw < *sum).map(|(_, group)| group)
    }
}

impl Group {
    fn draw(&self, balance: &Balance, hosts: &[Host], turns: &mut Turns, draw: &Draw<'_>) -> Option<u32> {
        let weight = |host: &Host| balance.weight(host, draw.now);
        match balance.policy {
            LoadBalancing::Ewma => self.ewma(hosts, draw),
            LoadBalancing::RoundRobin if self.equal_weights => turns.next(self),
            LoadBalancing::RoundRobin => turns.weighted(self, |at| weight(&hosts[at as usize])),
            LoadBalancing::LeastRequest { choices } if self.equal_weights => {
                let draws = (0..choices.max(1)).filter_map(|_| self.random());
                draws.min_by_key(|&at| hosts[at as usize].endpoint.active())
            }
            LoadBalancing::LeastRequest { .. } => turns.weighted(self, |at| {
                let host = &hosts[at as usize];
                weight(host) / (f64::from(host.endpoint.active()) + 1.0)
            }),
            LoadBalancing::Random | LoadBalancing::RingHash { .. } | LoadBalancing::Maglev { .. } => {
                self.random()
            }
        }
    }

    fn random(&self) -> Option<u32> {
        match &self.members[..] {
            [] => None,
            [only] => Some(*only),
            members => Some(members[fastrand::usize(..members.len())]),
        }
    }

    /// Two different ones at random, the cheaper wins; a heavier endpoint is cheaper, and one to
    /// avoid is the dearest: of two endpoints a retry always gets the other. A retry looks at more than
    /// two, or it would go on meeting those that are gone and not yet known to be.
    fn ewma(&self, hosts: &[Host], draw: &Draw<'_>) -> Option<u32> {
        let members = &self.members[..];
        if members.len() < 2 {
            return members.first().copied();
        }
        let cost = |at: u32| {
            let host = &hosts[at as usize];
            if (draw.avoid)(host) {
                f64::INFINITY
            } else {
                host.endpoint.cost(draw.now) / f64::from(host.weight)
            }
        };
        let first = fastrand::usize(..members.len());
        if draw.again {
            let from_first = members.iter().cycle().skip(first).copied();
            let looked_at = from_first.take(members.len().min(RETRY_CHOICES));
            return looked_at.min_by(|&one, &other| cost(one).total_cmp(&cost(other)));
        }
        let second = (first + 1 + fastrand::usize(..members.len() - 1)) % members.len();
        let (first, second) = (members[first], members[second]);
        Some(if cost(second) < cost(first) { second } else { first })
    }
}

/// Endpoints that a retry chooses among.
const RETRY_CHOICES: usize = 16;

impl Turns {
    fn slot(&mut self, group: &Group, new: impl FnOnce() -> Turn) -> &mut Turn {
        if self.0.len() <= group.slot {
            self.0.resize_with(group.slot + 1, || None);
        }
        self.0[group.slot].get_or_insert_with(new)
    }

    fn next(&mut self, group: &Group) -> Option<u32> {
        let count = group.members.len();
        let turn = self.slot(group, || Turn::Next(fastrand::usize(..count.max(1))));
        let Turn::Next(next) = turn else { return group.random() };
        let member = group.members.get(*next % count.max(1)).copied();
        *next = next.wrapping_add(1);
        member
    }

    fn weighted(&mut self, group: &Group, weight: impl Fn(u32) -> f64) -> Option<u32> {
        let count = u32::try_from(group.members.len()).unwrap_or(u32::MAX);
        let weight = |member: u32| weight(group.members[member as usize]);
        let turn =
            self.slot(group, || Turn::Weighted(Edf::new(count, fastrand::u32(..count.max(1)), weight)));
        let Turn::Weighted(edf) = turn else { return group.random() };
        edf.next(weight).map(|member| group.members[member as usize])
    }
}

impl Counts {
    /// Of every priority.
    pub(crate) fn by_level(hosts: &[Host], localities: &[LocalityHosts]) -> Vec<Self> {
        let count = localities.iter().map(|it| it.priority as usize + 1).max().unwrap_or(0);
        let of_level = |level: usize| -> Vec<&LocalityHosts> {
            localities.iter().filter(|it| it.priority as usize == level).collect()
        };
        (0..count).map(|level| Self::of(hosts, &of_level(level))).collect()
    }

    fn of(hosts: &[Host], localities: &[&LocalityHosts]) -> Self {
        let mut counts = Self::default();
        for host in localities.iter().flat_map(|it| &it.members).map(|&at| &hosts[at as usize]) {
            counts.total += 1;
            counts.healthy += usize::from(host.is_healthy());
            counts.degraded += usize::from(host.is_degraded());
        }
        counts
    }
}

#[cfg(test)]
mod tests;
