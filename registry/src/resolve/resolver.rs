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
        for (name, service) in &mut next.services {
            if let Some(before) = self.model.services.get(name).filter(|before| *before == service) {
                *service = Arc::clone(before);
            }
        }
        self.model = Arc::new(next);
        &self.model
    }

    /// Resolves `changed` services and those whose routes send traffic to them, after instances or
    /// indexes changed and resources did not. The model stays the same if nothing came out different.
    pub fn some(&mut self, input: &Input<'_>, changed: &BTreeSet<ServiceName>) -> &Arc<MeshModel> {
        let mut updates = Vec::new();
        for name in changed.union(&dependents(input, changed)) {
            let service = resolve_service(input, name);
            if service.as_ref() != self.model.services.get(name).map(|before| &**before) {
                updates.push((name.clone(), service));
            }
        }
        if updates.is_empty() {
            return &self.model;
        }
        let mut next = (*self.model).clone();
        let count = next.services.len();
        let mut is_new = false;
        for (name, service) in updates {
            match service {
                Some(service) => is_new |= next.services.insert(name, Arc::new(service)).is_none(),
                None => _ = next.services.remove(&name),
            }
        }
        if is_new || next.services.len() != count {
            next.names = names(input.resources, next.services.keys(), &next.zone);
        }
        self.model = Arc::new(next);
        &self.model
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
