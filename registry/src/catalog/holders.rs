//! Which of several registries hears an instance, and so judges its silence.
//!
//! The one it registered at. When that one is gone, one of those present, picked by rendezvous
//! hashing: all pick the same without asking each other, and another departure moves only what the
//! departed one had.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use pillion_model::name::{InstanceId, ServiceName};

/// Who is there, and who holds what. Without a name of our own there are no others.
#[derive(Debug, Default)]
pub(super) struct Holders {
    own: Arc<str>,
    present: BTreeSet<Arc<str>>,
    of: HashMap<(ServiceName, InstanceId), Arc<str>>,
    changes: u64,
}

impl Holders {
    pub(super) fn new(own: &str) -> Self {
        Self { own: own.into(), ..Self::default() }
    }

    /// Rises when a replica comes or goes.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn arrive(&mut self, replica: &str) {
        if self.present.insert(replica.into()) {
            self.changes += 1;
        }
    }

    pub(super) fn leave(&mut self, replica: &str) {
        if self.present.remove(replica) {
            self.changes += 1;
        }
    }

    /// Notes who holds an instance; empty: nobody.
    pub(super) fn hold(&mut self, service: &ServiceName, id: &InstanceId, replica: &str) {
        let key = (service.clone(), id.clone());
        match replica {
            "" => drop(self.of.remove(&key)),
            _ => {
                let shared = self.present.get(replica).cloned().unwrap_or_else(|| replica.into());
                self.of.insert(key, shared);
            }
        }
    }

    /// Who holds an instance, as written.
    pub(super) fn holder(&self, service: &ServiceName, id: &InstanceId) -> &str {
        self.of.get(&(service.clone(), id.clone())).map_or("", |holder| holder)
    }

    pub(super) fn present(&self) -> &BTreeSet<Arc<str>> {
        &self.present
    }

    pub(super) fn own(&self) -> &str {
        &self.own
    }

    pub(super) fn is_another(&self, replica: &str) -> bool {
        !replica.is_empty() && *replica != *self.own
    }

    /// Whether we judge the silence of an instance.
    pub(super) fn are_ours(&self, service: &ServiceName, id: &InstanceId) -> bool {
        if self.own.is_empty() {
            return true;
        }
        let holder = self.holder(service, id);
        if *holder == *self.own || self.present.contains(holder) {
            return *holder == *self.own;
        }
        let weight = |replica: &str| {
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            for part in [replica, service.namespace(), service.service(), id.as_str()] {
                hash.update(part.as_bytes());
                hash.update(b"/");
            }
            hash.digest()
        };
        let own = (weight(&self.own), &*self.own);
        self.present.iter().all(|other| (weight(other), &**other) <= own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> ServiceName {
        ServiceName::new("shop", "orders").expect("valid")
    }

    fn id(n: usize) -> InstanceId {
        InstanceId::parse(&format!("i{n}")).expect("valid")
    }

    fn judges(replicas: &[Holders], n: usize) -> Vec<&str> {
        let judges = replicas.iter().filter(|holders| holders.are_ours(&orders(), &id(n)));
        judges.map(Holders::own).collect()
    }

    #[test]
    fn exactly_one_judges_and_the_holder_while_it_is_there() {
        let mut replicas: Vec<_> = ["a", "b", "c"].map(Holders::new).into();
        for holders in &mut replicas {
            for name in ["a", "b", "c"] {
                holders.arrive(name);
            }
            for n in 0..300 {
                holders.hold(&orders(), &id(n), ["a", "b", "c"][n % 3]);
            }
        }
        for n in 0..300 {
            assert_eq!(judges(&replicas, n), [["a", "b", "c"][n % 3]]);
        }
        replicas.remove(0);
        replicas.iter_mut().for_each(|holders| holders.leave("a"));
        let mut taken_over = [0, 0];
        for n in 0..300 {
            let judges = judges(&replicas, n);
            assert_eq!(judges.len(), 1, "of {n}");
            match n % 3 {
                0 => taken_over[usize::from(judges[0] == "c")] += 1,
                at => assert_eq!(judges, [["a", "b", "c"][at]], "others stay where they are"),
            }
        }
        assert!(taken_over.iter().all(|&count| count > 20), "both take some: {taken_over:?}");
    }

    #[test]
    fn alone_everything_is_ours() {
        let holders = Holders::default();
        assert!(holders.are_ours(&orders(), &id(1)));
    }
}
