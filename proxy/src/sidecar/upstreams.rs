//! Local ports that lead to one service each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use pillion_model::mesh::{MeshPort, MeshService};
use pillion_model::name::ServiceName;
use tracing::warn;

use super::options::Upstream;
use super::{StartError, unbound};
use crate::runtime::Runtime;

/// The local ports, bound from the start; a connection to a service that is not known is closed.
pub(super) struct Upstreams {
    runtime: Arc<Runtime>,
    wanted: Vec<Upstream>,
    /// Upstreams already complained about.
    reported: Mutex<BTreeSet<String>>,
}

impl Upstreams {
    /// Binds every port; gives where.
    ///
    /// # Errors
    ///
    /// [`StartError::Bind`] names a port that is taken.
    pub(super) fn bind(
        runtime: &Arc<Runtime>,
        wanted: &[Upstream],
    ) -> Result<(Self, Vec<(Upstream, SocketAddr)>), StartError> {
        let mut bound = Vec::new();
        for upstream in wanted {
            let name = listener(upstream);
            let published = runtime.open_upstream(&name, address(upstream), None);
            let at = runtime.bound(&name).ok_or_else(|| unbound(&published, "--upstream"))?;
            bound.push((upstream.clone(), at));
        }
        let (runtime, wanted) = (Arc::clone(runtime), wanted.to_vec());
        Ok((Self { runtime, wanted, reported: Mutex::default() }, bound))
    }

    /// Leads every port to what its service is now.
    pub(super) fn follow(&self, services: &BTreeMap<ServiceName, MeshService>) {
        for upstream in &self.wanted {
            let service = services.get(&upstream.service);
            let port = service.and_then(|service| port(service, upstream.port));
            if let (Some(service), None) = (service, port) {
                self.report(upstream, service);
            }
            self.runtime.open_upstream(&listener(upstream), address(upstream), port);
        }
    }

    fn report(&self, upstream: &Upstream, service: &MeshService) {
        let fresh = self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(upstream.to_string());
        if fresh {
            let known: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
            let known = known.join(", ");
            warn!("--upstream: service {} has no port {}; it has {known}", upstream.service, upstream.port);
        }
    }
}

fn port(service: &MeshService, number: u16) -> Option<&MeshPort> {
    service.ports.iter().find(|port| port.port == number)
}

fn address(upstream: &Upstream) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, upstream.listen).into()
}

fn listener(upstream: &Upstream) -> String {
    format!("upstream|{}|{upstream}", upstream.listen)
}
