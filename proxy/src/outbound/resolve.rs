//! From the host a request names to where it goes.

use std::sync::Arc;
use std::time::Duration;

use pillion_model::matcher::RequestView;
use pillion_model::mesh::MeshPort;
use pillion_model::mesh::MeshService;
use pillion_net::resolve::Target;
use tokio::time::timeout;

use super::{Egress, Found, OutboundOptions};
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::snapshot::{Routes, Snapshot};
use crate::worker::Worker;

/// How long a service's routes and clusters may take after the service itself is known.
const PUBLISH_WAIT: Duration = Duration::from_secs(1);

/// Where a request goes.
pub(crate) enum Destination {
    /// By routes: the connection manager's, or those found for the host.
    Routes,
    /// A TCP service of the mesh, through a CONNECT tunnel: its cluster.
    Tcp(String),
    /// An HTTP service of the mesh, through a CONNECT tunnel: its route configuration.
    Inner(Arc<str>),
    /// Outside the mesh.
    External(Target),
}

/// Finds the destination of a request on a listener that routes by host.
pub(crate) async fn resolve(x: &mut Exchange) -> Step<Destination> {
    if !matches!(x.hcm.routes, Routes::ByHost) {
        return Ok(Destination::Routes);
    }
    if let Some(name) = x.connection.tunnelled_to.clone() {
        return routes(x, &name).await;
    }
    let worker = Arc::clone(x.connection.worker.shared());
    let Some(outbound) = worker.outbound.get() else {
        return Err(Cause::NoRouteConfiguration.into());
    };
    let target = target(x)?;
    let service = match service(x, outbound, &target.host).await {
        Found::Service(service) => service,
        Found::NoService => return Box::pin(outside(x, outbound, target)).await,
        Found::Unanswered => {
            return Err(Cause::NameUnanswered(format!(
                "the registry has not answered, and `{}` is not known here yet",
                target.host
            ))
            .into());
        }
    };
    let Some(port) = service.ports.iter().find(|port| port.port == target.port) else {
        return Err(Cause::NoService(no_port(&service, target.port)).into());
    };
    if !port.protocol.is_http() {
        return tcp(x, &service, port).await;
    }
    if is_connect(x) {
        return Ok(Destination::Inner(port.route_configuration.as_str().into()));
    }
    routes(x, &port.route_configuration).await
}

/// Where a name leads that no service has.
async fn outside(x: &mut Exchange, outbound: &OutboundOptions, target: Target) -> Step<Destination> {
    if is_in_zone(&target.host, &outbound.zone) {
        let reason = format!("no service of this mesh is called `{}`", target.host);
        return Err(Cause::NoService(reason).into());
    }
    let denied = match (outbound.egress, &outbound.egress_routes) {
        (Egress::Deny, _) => true,
        (Egress::Allow, None) => false,
        (Egress::Allow, Some(name)) => {
            if !published(x, |snapshot| snapshot.routes.contains_key(name)).await {
                let reason = "the registry has not said whether destinations outside the mesh are allowed";
                return Err(Cause::NameUnanswered(reason.to_owned()).into());
            }
            x.snapshot.routes.get(name).is_none_or(|routes| routes.answers_everything)
        }
    };
    if denied {
        let reason = format!(
            "`{}` is not a service of the mesh, and the egress policy denies other destinations",
            target.host
        );
        return Err(Cause::EgressDenied(reason).into());
    }
    Ok(Destination::External(target))
}

fn is_in_zone(host: &str, zone: &str) -> bool {
    let rest = host.strip_suffix(zone).filter(|_| !zone.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// By the route configuration of that name, as soon as it is published.
async fn routes(x: &mut Exchange, name: &str) -> Step<Destination> {
    if !published(x, |snapshot| snapshot.routes.contains_key(name)).await {
        return Err(Cause::NoRouteConfiguration.into());
    }
    x.routes = x.snapshot.routes.get(name).cloned();
    Ok(Destination::Routes)
}

fn is_connect(x: &Exchange) -> bool {
    x.head.method == http::Method::CONNECT
}

fn target(x: &Exchange) -> Step<Target> {
    let default_port = if x.head.scheme == "https" || is_connect(x) { 443 } else { 80 };
    let mut target = Target::parse(x.head.authority(), default_port).map_err(|_error| Cause::MissingHost)?;
    target.host.make_ascii_lowercase();
    if target.host.ends_with('.') {
        target.host.pop();
    }
    Ok(target)
}

/// The service of that name: known, or asked for.
async fn service(x: &mut Exchange, outbound: &OutboundOptions, host: &str) -> Found {
    if let Some(service) = x.snapshot.services.get(host) {
        if let Some(on_demand) = &outbound.on_demand {
            on_demand.touch(host);
        }
        return Found::Service(Arc::clone(service));
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Found::NoService;
    }
    match &outbound.on_demand {
        Some(on_demand) => Box::pin(on_demand.lookup(host)).await,
        None => Found::NoService,
    }
}

fn no_port(service: &MeshService, asked: u16) -> String {
    let known: Vec<String> =
        service.ports.iter().map(|port| format!("{} ({})", port.port, port.name)).collect();
    format!("service `{}` has no port {asked}; it has {}", service.service, known.join(", "))
}

async fn tcp(x: &mut Exchange, service: &MeshService, port: &MeshPort) -> Step<Destination> {
    if !is_connect(x) {
        let reason = format!("`{}` port {} is a TCP service: use CONNECT", service.service, port.port);
        return Err(Cause::EgressFailed(reason).into());
    }
    let Some(cluster) = port.clusters.first() else {
        return Err(Cause::NoCluster(http::StatusCode::SERVICE_UNAVAILABLE).into());
    };
    published(x, |snapshot| snapshot.clusters.contains_key(cluster)).await;
    Ok(Destination::Tcp(cluster.clone()))
}

/// Waits until the snapshot holds what is wanted, and makes it the request's.
async fn published(x: &mut Exchange, holds: impl Fn(&Snapshot) -> bool) -> bool {
    if holds(&x.snapshot) {
        return true;
    }
    let worker = &x.connection.worker;
    let mut changes = worker.shared().published.subscribe();
    let wait = async {
        loop {
            let snapshot = Worker::snapshot(worker);
            if holds(&snapshot) {
                return Some(snapshot);
            }
            changes.changed().await.ok()?;
        }
    };
    match timeout(PUBLISH_WAIT, wait).await {
        Ok(Some(snapshot)) => {
            x.snapshot = snapshot;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_zone_end_at_a_label() {
        for (host, zone, want) in [
            ("orders.shop.mesh.internal", "mesh.internal", true),
            ("mesh.internal", "mesh.internal", true),
            ("notmesh.internal", "mesh.internal", false),
            ("example.com", "mesh.internal", false),
            ("example.com", "", false),
        ] {
            assert_eq!(is_in_zone(host, zone), want, "{host} in {zone:?}");
        }
    }
}
