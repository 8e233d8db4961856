//! Resources as applied: read from the store, checked as a whole, and written all or nothing.
//!
//! A change is judged against everything else in force: what it breaks is refused, what was broken
//! before does not stand in the way of others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use pillion_config::{Federation, Kind, Problem, Resource, ResourceKey, ResourceSet, check_among};
use pillion_model::name::{ServiceName, TrustDomain};

use crate::catalog::Catalog;
use crate::federation::Bundle;
use crate::store::{Key, Op, Space, StoreError, Transaction};

#[cfg(test)]
mod tests;

/// Times a change is tried again because something else changed meanwhile.
const TRIES: usize = 8;

/// All resources, with the revisions that wrote them. Shared; a change is a new one.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// For resolving.
    pub set: ResourceSet,
    /// For reading and for conditional writes.
    pub entries: BTreeMap<ResourceKey, ResourceEntry>,
    /// The last change to any of them.
    pub revision: Option<u64>,
}

/// One resource and who wrote it last.
#[derive(Clone, Debug)]
pub struct ResourceEntry {
    /// The revision of its last write: its ETag.
    pub revision: u64,
    /// The resource.
    pub resource: Arc<Resource>,
}

impl Resources {
    pub(crate) fn put(&mut self, revision: u64, resource: Resource) {
        self.set.insert(resource.clone());
        self.entries.insert(resource.key(), ResourceEntry { revision, resource: Arc::new(resource) });
    }

    pub(crate) fn remove(&mut self, key: &ResourceKey) {
        self.set.remove(key);
        self.entries.remove(key);
    }
}

/// What to change.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// To be there as given.
    pub put: Vec<Resource>,
    /// To be gone.
    pub delete: Vec<ResourceKey>,
    /// Only if these resources are as of these revisions; `None`: only if they are not there.
    pub conditions: Vec<(ResourceKey, Option<u64>)>,
}

/// What became of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there before.
    Created,
    /// It was there and is different now.
    Updated,
    /// It was there as given.
    Unchanged,
    /// It was there and is gone.
    Deleted,
}

/// What a change did, or would do.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The revision everybody sees it at.
    pub revision: u64,
    /// In the order given, puts first.
    pub outcomes: Vec<(ResourceKey, Outcome)>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The result would not hold together.
    #[error("{} of the resources {} not fit", .0.len(), if .0.len() == 1 { "does" } else { "do" })]
    Invalid(Vec<Problem>),
    /// There is nothing of that name to delete.
    #[error("there is no {0}")]
    Unknown(ResourceKey),
    /// A condition does not hold.
    #[error("{key} is not as expected: {}", match .found { Some(_) => "it was changed meanwhile", None => "it is not there" })]
    Condition {
        /// The resource.
        key: ResourceKey,
        /// Its revision now.
        found: Option<u64>,
    },
    /// No room for another service.
    #[error("{0}")]
    Full(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Check only.
    DryRun,
    /// Check and write.
    Commit,
}

impl Catalog {
    /// Applies all of `change` or nothing; returns when every reader sees it.
    ///
    /// # Errors
    ///
    /// [`ApplyError`]: nothing was changed.
    pub async fn apply_resources(&self, change: &Change, mode: Mode) -> Result<Applied, ApplyError> {
        let _one_at_a_time = self.applying.lock().await;
        let mut conflict = StoreError::Unavailable("the resources keep changing".to_owned());
        for _ in 0..TRIES {
            let world = self.world();
            let outcomes = judge(&world, change)?;
            let mut transaction = self.plan_resources(&world.resources, change, &outcomes)?;
            if mode == Mode::DryRun || transaction.ops.is_empty() {
                return Ok(Applied { revision: world.revision, outcomes });
            }
            // Whatever was looked at while judging must still be so: one key stands for all.
            let guard = Key::new(Space::Meta, RESOURCES);
            transaction.require(guard.clone(), world.resources.revision).push(Op::put(guard, Vec::new()));
            match self.commit(transaction).await {
                Ok(revision) => return Ok(Applied { revision, outcomes }),
                Err(error @ StoreError::Conflict { .. }) => {
                    conflict = error;
                    self.catch_up().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(conflict.into())
    }

    fn plan_resources(
        &self,
        have: &Resources,
        change: &Change,
        outcomes: &[(ResourceKey, Outcome)],
    ) -> Result<Transaction, ApplyError> {
        let mut transaction = Transaction::default();
        let unchanged: BTreeSet<&ResourceKey> = outcomes
            .iter()
            .filter(|(_, outcome)| *outcome == Outcome::Unchanged)
            .map(|(key, _)| key)
            .collect();
        let mut services = Vec::new();
        for resource in &change.put {
            let key = resource.key();
            if unchanged.contains(&key) {
                continue;
            }
            transaction.require(store_key(&key), have.entries.get(&key).map(|entry| entry.revision));
            transaction.push(Op::put(store_key(&key), resource.to_json().to_string().into_bytes()));
            if let Resource::Service(service) = resource {
                services.extend(service.service_name());
            }
        }
        for key in &change.delete {
            transaction.require(store_key(key), have.entries.get(key).map(|entry| entry.revision));
            transaction.push(Op::delete(store_key(key)));
        }
        self.plan_service_records(&mut transaction, &services, &change.delete).map_err(ApplyError::Full)?;
        Ok(transaction)
    }
}

/// What the change would do, if it may be done.
fn judge(world: &crate::catalog::World, change: &Change) -> Result<Vec<(ResourceKey, Outcome)>, ApplyError> {
    let have = &world.resources;
    for (key, wanted) in &change.conditions {
        let found = have.entries.get(key).map(|entry| entry.revision);
        if found != *wanted {
            return Err(ApplyError::Condition { key: key.clone(), found });
        }
    }
    let mut next = have.set.clone();
    let mut outcomes = Vec::new();
    for resource in &change.put {
        let key = resource.key();
        let outcome = match have.entries.get(&key) {
            None => Outcome::Created,
            Some(entry) if *entry.resource == *resource => Outcome::Unchanged,
            Some(_) => Outcome::Updated,
        };
        next.insert(resource.clone());
        outcomes.push((key, outcome));
    }
    for key in &change.delete {
        if next.remove(key).is_none() {
            return Err(ApplyError::Unknown(key.clone()));
        }
        outcomes.push((key.clone(), Outcome::Deleted));
    }
    let registered = |name: &ServiceName| world.catalog.services.contains_key(name);
    let before = check_among(&have.set, &registered);
    let mut problems = check_among(&next, &registered);
    let given: BTreeSet<ResourceKey> = change.put.iter().map(Resource::key).collect();
    problems.retain(|problem| given.contains(&problem.key) || !before.contains(problem));
    problems.extend(fixed(world, &change.put));
    if problems.is_empty() { Ok(outcomes) } else { Err(ApplyError::Invalid(problems)) }
}

/// What the authority has certified cannot be renamed.
fn fixed(world: &crate::catalog::World, put: &[Resource]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for federation in put.iter().filter_map(|resource| match resource {
        Resource::Federation(federation) => Some(federation),
        _ => None,
    }) {
        problems.extend(federated(world, federation));
    }
    for resource in put {
        let (Resource::Mesh(mesh), Some(domain)) = (resource, &world.trust_domain) else { continue };
        if mesh.trust_domain != **domain {
            problems.push(Problem {
                key: resource.key(),
                path: "trustDomain".to_owned(),
                message: format!(
                    "got {}, but this registry's authority has issued for {domain} since its first start; \
                     use that, or start a registry with an empty data directory and --trust-domain",
                    mesh.trust_domain
                ),
            });
        }
    }
    problems
}

/// A federation is with another trust domain than ours, and begins with a bundle that is one.
fn federated(world: &crate::catalog::World, federation: &Federation) -> Option<Problem> {
    let domain = TrustDomain::parse(&federation.trust_domain).ok()?;
    let refuse = |path: &str, message: String| {
        let key = ResourceKey::new(Kind::Federation, &federation.namespace, &federation.name);
        Some(Problem { key, path: path.to_owned(), message })
    };
    if world.trust_domain.as_deref() == Some(domain.as_str()) {
        return refuse("trustDomain", format!("{domain} is this mesh's own trust domain"));
    }
    let trusted = federation.bundle.trusted.as_deref()?;
    let wrong = Bundle::parse(trusted.as_bytes(), &domain, SystemTime::now()).err()?;
    refuse("bundle.trusted", format!("cannot be trusted: {wrong}"))
}

/// Name of the value whose revision is that of the last change to any resource.
pub(crate) const RESOURCES: &str = "resources";

pub(crate) fn store_key(key: &ResourceKey) -> Key {
    Key::new(Space::Resource, format!("{}/{}/{}", key.kind, key.namespace, key.name))
}

pub(crate) fn parse_key(name: &str) -> Option<ResourceKey> {
    let mut parts = name.splitn(3, '/');
    let kind = Kind::parse(parts.next()?)?;
    Some(ResourceKey::new(kind, parts.next()?, parts.next()?))
}
