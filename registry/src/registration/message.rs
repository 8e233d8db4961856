//! The stream's messages, read by the same rules as the HTTP API's.

use std::net::IpAddr;
use std::time::Duration;

use pillion_model::health::{Probe, Reported};
use pillion_model::name::{InstanceId, NameError, ServiceName};
use pillion_xds::mesh;

use crate::api::{InstanceDocument, PortDocument};
use crate::catalog::{FieldProblem, Registration, duration_text};

/// Reads an instance; without an address it is where the stream comes from.
pub(super) fn registration(
    instance: mesh::Instance,
    remote: Option<IpAddr>,
) -> Result<Registration, Vec<FieldProblem>> {
    let name = |field: &str, error: NameError| {
        vec![FieldProblem { field: field.to_owned(), detail: error.to_string() }]
    };
    let service = ServiceName::new(&instance.namespace, &instance.service)
        .map_err(|error| name("namespace, service", error))?;
    let id = InstanceId::parse(&instance.id).map_err(|error| name("id", error))?;
    let (said, found) = (reported(instance.reported()), probe(instance.probe()));
    let address = match (instance.address.is_empty(), remote) {
        (true, Some(remote)) => remote.to_string(),
        _ => instance.address,
    };
    let given = |port: u32| (port != 0).then_some(port);
    let ports = instance.ports.into_iter().map(|(name, port)| {
        let document = PortDocument {
            port: port.port,
            protocol: Some(port.protocol).filter(|protocol| !protocol.is_empty()),
            app_address: Some(port.app_address).filter(|address| !address.is_empty()),
        };
        (name, document)
    });
    let document = InstanceDocument {
        address,
        port: None,
        ports: ports.collect(),
        inbound_port: given(instance.inbound_port),
        metrics_port: given(instance.metrics_port),
        labels: instance.labels.into_iter().collect(),
        metadata: instance.metadata.into_iter().collect(),
        weight: instance.weight,
        zone: Some(instance.zone),
        health: None,
        ttl: given(instance.ttl_ms).map(|ms| duration_text(Duration::from_millis(ms.into()))),
        generation: Some(instance.generation).filter(|generation| *generation != 0),
    };
    let json = serde_json::to_value(document).expect("only texts, numbers and maps with text keys");
    let registration = Registration::parse(service, id, &json)?;
    Ok(Registration { reported: Some(said), probe: Some(found), ..registration })
}

pub(super) fn reported(reported: mesh::Reported) -> Reported {
    match reported {
        mesh::Reported::Ready => Reported::Ready,
        mesh::Reported::Starting => Reported::Starting,
        mesh::Reported::NotReady => Reported::NotReady,
        mesh::Reported::Draining => Reported::Draining,
    }
}

pub(super) fn probe(probe: mesh::Probe) -> Probe {
    match probe {
        mesh::Probe::Unknown => Probe::Unknown,
        mesh::Probe::Passing => Probe::Passing,
        mesh::Probe::Failing => Probe::Failing,
    }
}
