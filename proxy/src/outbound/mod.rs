//! The application's own traffic: a Host-routed listener (15001) that is an HTTP proxy at the same
//! time, and sockets at virtual addresses, one per service port.
//!
//! Destinations are mesh services by any of their names. An unknown name is asked of the mesh once
//! ([`OnDemand`]); what is not in the mesh is forwarded to the name itself, or refused, as the egress
//! policy says.

mod external;
mod listeners;
mod resolve;
mod tunnel;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use pillion_model::http::AccessLog;
use pillion_model::mesh::MeshService;

pub(crate) use external::run as external;
pub(crate) use listeners::{VIP_PREFIX, by_host, upstream_listener, vip_listener, vip_listeners};
pub(crate) use resolve::{Destination, resolve};
pub(crate) use tunnel::{inner, run as tunnel};

/// What happens to destinations outside the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// They are forwarded to.
    #[default]
    Allow,
    /// They are refused with 502 and the reason.
    Deny,
}

/// What the mesh knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is this service's.
    Service(Arc<MeshService>),
    /// No service is called so.
    NoService,
    /// The mesh has not answered: the name may be a service's.
    Unanswered,
}

/// Asks the mesh for a service by name.
pub trait OnDemand: Send + Sync + 'static {
    /// The service called `host` (lower case, without port). Answers in about a second, whatever
    /// happens. The service's routes and clusters are published soon after.
    fn lookup<'a>(&'a self, host: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>>;

    /// `host` was used again.
    fn touch(&self, host: &str);
}

/// How the application's traffic is taken.
#[derive(Clone, Default)]
pub struct OutboundOptions {
    /// The Host-routed listener; `None`: there is none.
    pub listen: Option<SocketAddr>,
    /// Destinations outside the mesh.
    pub egress: Egress,
    /// A route configuration that is asked as well: what it answers is refused. While it is not known,
    /// nothing leaves. `None`: `egress` alone decides.
    pub egress_routes: Option<String>,
    /// The mesh's DNS zone (`mesh.internal`): its names are never looked for outside. Empty: none.
    pub zone: String,
    /// Asked for names that are not known yet.
    pub on_demand: Option<Arc<dyn OnDemand>>,
    /// Of all outbound listeners.
    pub access_logs: Vec<AccessLog>,
}

/// Name of the route configuration of a listener that routes by host: no resource is called so.
pub(crate) const BY_HOST: &str = "pillion:by-host";
