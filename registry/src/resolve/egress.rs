//! What callers' sidecars do with destinations outside the mesh.
//!
//! A decision about traffic, made at the caller, so it travels as Envoy's API says such things: a
//! route configuration that answers every host where the mesh denies them, and is empty where they
//! are forwarded.

use pillion_model::mesh::EGRESS_ROUTES;
use pillion_model::route::{
    FilterOverrides, HeaderChanges, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};

/// The answer to a request that the mesh denies.
const DENIED_STATUS: u16 = 502;

/// Routes of destinations outside the mesh.
pub(crate) fn egress(is_allowed: bool) -> RouteConfiguration {
    let denied = || VirtualHost {
        name: EGRESS_ROUTES.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: "denied".to_owned(),
            matches: RouteMatch::default(),
            action: RouteAction::Respond {
                status: DENIED_STATUS,
                body: b"the mesh denies destinations outside it".to_vec(),
            },
            headers: HeaderChanges::default(),
            filters: FilterOverrides::default(),
        }],
        ..VirtualHost::default()
    };
    RouteConfiguration {
        name: EGRESS_ROUTES.to_owned(),
        virtual_hosts: if is_allowed { Vec::new() } else { vec![denied()] },
        ..RouteConfiguration::default()
    }
}
