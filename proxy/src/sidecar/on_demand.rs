//! Names that the outbound side does not know yet, asked of the control client.

use std::pin::Pin;

use crate::control::{Control, Lookup};
use crate::outbound::{Found, OnDemand};

/// The outbound side asks here for names it does not know.
pub(super) struct AskControl(pub(super) Control);

impl OnDemand for AskControl {
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>> {
        Box::pin(async move {
            match self.0.lookup(host).await {
                Lookup::Service(service) => Found::Service(service),
                Lookup::NxDomain => Found::NoService,
                Lookup::Timeout => Found::Unanswered,
            }
        })
    }

    fn touch(&self, host: &str) {
        self.0.touch(host);
    }
}
