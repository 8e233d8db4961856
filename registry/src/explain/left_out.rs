//! Instances that are registered, and yet no endpoints.

use std::sync::Arc;

use pillion_model::health::Health;
use pillion_model::instance::Instance;
use pillion_model::name::ServiceName;

use super::{DestinationStep, Explanation};
use crate::catalog::CatalogView;

impl Explanation {
    /// Counts the instances that mutual TLS leaves out, as they have no sidecar, and says so where that
    /// is why nobody takes the request.
    pub fn note_left_out(&mut self, catalog: &CatalogView) {
        for step in self.destinations.iter_mut().filter(|step| step.mtls.as_deref() == Some("strict")) {
            let name = step.service.parse::<ServiceName>().ok();
            let Some(registered) = name.and_then(|name| catalog.services.get(&name)) else { continue };
            let left_out = |instance: &&Arc<Instance>| {
                instance.inbound_port.is_none() && Health::combine(instance.health).takes_traffic()
            };
            step.without_sidecar = registered.instances.values().filter(left_out).count();
        }
        let empty = self.destinations.iter().find(|step| step.percent > 0.0 && !step.takes_traffic());
        if let Some(DestinationStep { without_sidecar: count @ 1.., authorization, .. }) = empty
            && authorization.allowed
        {
            self.outcome += &format!(
                " ({count} without a sidecar are left out, as mutual TLS is strict: give them one, or make it permissive)"
            );
        }
    }
}
