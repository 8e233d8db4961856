//! Names that the outbound side does not know yet, asked of the control client.

use std::pin::Pin;
use std::sync::Arc;

use pillion_model::mesh::MeshService;

use crate::control::{Control, Lookup};
use crate::outbound::OnDemand;

/// The outbound side asks here for names it does not know.
pub(super) struct AskControl(pub(super) Control);

impl OnDemand for AskControl {
    fn lookup<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Arc<MeshService>>> + Send + 'a>> {
        Box::pin(async move {
            match self.0.lookup(host).await {
                Lookup::Service(service) => Some(service),
                Lookup::NxDomain | Lookup::Timeout => None,
            }
        })
    }

    fn touch(&self, host: &str) {
        self.0.touch(host);
    }
}
