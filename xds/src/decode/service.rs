//! Services as sidecars learn them.

use pillion_model::instance::Protocol;
use pillion_model::mesh::{MeshPort, MeshService};
use pillion_model::name::ServiceName;

use super::Context;

pub(super) fn service(cx: &mut Context, message: crate::mesh::MeshService) -> Option<MeshService> {
    let service = ServiceName::new(&message.namespace, &message.service)
        .map_err(|error| cx.refuse(format!("`{}.{}` {error}", message.service, message.namespace)))
        .ok()?;
    let index = cx.port("index", message.index);
    Some(MeshService { service, names: message.names, index, ports: cx.each("ports", message.ports, port) })
}

fn port(cx: &mut Context, message: crate::mesh::MeshPort) -> MeshPort {
    let protocol = Protocol::parse(&message.protocol).unwrap_or_else(|| {
        cx.refuse_at("protocol", format!("got `{}`, want http, http2, grpc or tcp", message.protocol));
        Protocol::Tcp
    });
    MeshPort {
        port: cx.port("port", message.port),
        name: message.name,
        protocol,
        route_configuration: message.route_configuration,
        clusters: message.clusters,
    }
}
