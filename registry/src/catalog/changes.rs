//! Which services changed between two states, without looking at all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use pillion_model::name::ServiceName;
use rpds::ListSync;

use super::view::ByService;

/// Changes that are remembered at least. Whoever is further behind looks at every service, which by then
/// costs about as much.
const KEPT: usize = 1024;

/// The services that changed lately, the last one first. Travels with each state, and shares all that two
/// of them have in common.
#[derive(Clone, Debug)]
pub struct ChangedServices {
    /// The same in all states that came one from the other.
    history: Arc<()>,
    /// How many there have been.
    count: u64,
    latest: ListSync<ServiceName>,
    /// Those before the latest, at most [`KEPT`].
    earlier: ListSync<ServiceName>,
}

impl Default for ChangedServices {
    /// The beginning of a history of its own.
    fn default() -> Self {
        let nothing = ListSync::new_sync;
        Self { history: Arc::default(), count: 0, latest: nothing(), earlier: nothing() }
    }
}

impl ChangedServices {
    /// Notes that a service is not what it was.
    pub(crate) fn note(&mut self, service: ServiceName) {
        if self.latest.len() >= KEPT {
            self.earlier = std::mem::replace(&mut self.latest, ListSync::new_sync());
        }
        self.latest.push_front_mut(service);
        self.count += 1;
    }

    /// What changed since `then`; `None` if that is too long ago, or did not lead here.
    pub(super) fn since(&self, then: &Self) -> Option<impl Iterator<Item = &ServiceName>> {
        let count = usize::try_from(self.count.checked_sub(then.count)?).ok()?;
        let known =
            Arc::ptr_eq(&self.history, &then.history) && count <= self.latest.len() + self.earlier.len();
        known.then(|| self.latest.iter().chain(self.earlier.iter()).take(count))
    }
}

/// Services that are in one of two maps only, or not the same in both.
pub(crate) fn differing<V>(
    earlier: &ByService<V>,
    now: &ByService<V>,
    same: impl Fn(&V, &V) -> bool,
) -> BTreeSet<ServiceName> {
    let new = now.iter().filter(|(name, value)| earlier.get(*name).is_none_or(|was| !same(was, value)));
    let gone = earlier.keys().filter(|name| !now.contains_key(*name));
    new.map(|(name, _)| name).chain(gone).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(n: u64) -> ServiceName {
        ServiceName::new("shop", &format!("s{n}")).expect("valid")
    }

    fn since(now: &ChangedServices, then: &ChangedServices) -> Option<Vec<String>> {
        Some(now.since(then)?.map(|name| name.service().to_owned()).collect())
    }

    #[test]
    fn what_changed_since_a_state_is_known_for_a_while() {
        let mut changes = ChangedServices::default();
        let start = changes.clone();
        assert_eq!(since(&changes, &start), Some(vec![]));
        let mut states = vec![start];
        for n in 0..(KEPT as u64 * 3) {
            changes.note(service(n));
            states.push(changes.clone());
        }
        for (behind, then) in states.iter().rev().enumerate() {
            let want: Vec<_> = (0..behind).map(|n| format!("s{}", KEPT * 3 - 1 - n)).collect();
            match since(&changes, then) {
                Some(known) => assert_eq!(known, want),
                None => assert!(behind > KEPT, "{behind} behind"),
            }
        }
        assert_eq!(since(&changes, &states[0]), None, "too long ago");
        assert_eq!(since(&states[0], &changes), None, "that is later");
        assert_eq!(since(&changes, &ChangedServices::default()), None, "that is another history");
    }
}
