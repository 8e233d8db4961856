//! Keeps the model up to date at a cost that follows the change.

use std::collections::BTreeSet;
use std::sync::Arc;

use pillion_model::name::ServiceName;

use super::{Input, MeshModel, names, resolve, resolve_service};

/// The last model, and what it takes to make the next one from it.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    model: Arc<MeshModel>,
}

impl Resolver {
    /// The last model.
    pub fn model(&self) -> &Arc<MeshModel> {
        &self.model
    }

    /// Resolves everything, after resources changed. Services that came out the same keep their `Arc`.
    pub fn all(&mut self, input: &Input<'_>) -> &Arc<MeshModel> {
        let mut next = resolve(input);
        for (name, before) in &self.model.services {
            if next.services.get(name) == Some(before) {
                next.services.insert_mut(name.clone(), Arc::clone(before));
            }
        }
        if next.names == self.model.names {
            next.names = Arc::clone(&self.model.names);
        }
        self.model = Arc::new(next);
        &self.model
    }

    /// Resolves `changed` services and those whose routes send traffic to them, after instances or
    /// indexes changed and resources did not. Returns those that came out different; without any, the
    /// model stays the same.
    pub fn some(&mut self, input: &Input<'_>, changed: &BTreeSet<ServiceName>) -> BTreeSet<ServiceName> {
        let mut next: Option<MeshModel> = None;
        let (mut different, mut other_names) = (BTreeSet::new(), false);
        for name in changed.union(&dependents(input, changed)) {
            let (before, service) = (self.model.services.get(name), resolve_service(input, name));
            if service.as_ref() == before.map(|before| &**before) {
                continue;
            }
            other_names |= service.is_some() != before.is_some();
            let next = next.get_or_insert_with(|| MeshModel::clone(&self.model));
            match service {
                Some(service) => next.services.insert_mut(name.clone(), Arc::new(service)),
                None => drop(next.services.remove_mut(name)),
            }
            different.insert(name.clone());
        }
        if let Some(mut next) = next {
            if other_names {
                next.names = Arc::new(names(input.resources, next.services.keys(), &next.zone));
            }
            self.model = Arc::new(next);
        }
        different
    }
}

/// Services whose routes name one of `changed`: their clusters are named after its ports.
fn dependents(input: &Input<'_>, changed: &BTreeSet<ServiceName>) -> BTreeSet<ServiceName> {
    let mut found = BTreeSet::new();
    for route in input.resources.routes() {
        let is_changed = |text: &str| {
            let name = match text.contains('.') {
                true => text.parse(),
                false => ServiceName::new(&route.namespace, text),
            };
            name.is_ok_and(|name| changed.contains(&name))
        };
        let named = route.rules.iter().any(|rule| {
            let shares = rule.split.iter().filter_map(|share| share.service.as_deref());
            shares.chain(rule.mirror.as_ref().map(|mirror| mirror.service.as_str())).any(is_changed)
        });
        if named {
            found.extend(ServiceName::new(&route.namespace, &route.to));
        }
    }
    found
}
