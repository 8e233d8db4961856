//! Endpoints.

use std::collections::BTreeMap;

use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, LocalityEndpoints};
use pillion_model::health::Health;

use super::metadata::fields;
use super::{Dialect, fraction, metadata, number, text, texts};
use crate::pb;
use pb::core::HealthStatus;

pub(super) fn assignment(
    assignment: &LoadAssignment,
    dialect: Dialect<'_>,
) -> pb::endpoint::ClusterLoadAssignment {
    pb::endpoint::ClusterLoadAssignment {
        cluster_name: assignment.cluster.clone(),
        endpoints: assignment.localities.iter().map(|group| locality(group, dialect)).collect(),
        policy: Some(pb::endpoint::cluster_load_assignment::Policy {
            drop_overloads: assignment
                .drops
                .iter()
                .map(|(category, share)| pb::endpoint::cluster_load_assignment::policy::DropOverload {
                    category: category.clone(),
                    drop_percentage: Some(fraction(*share)),
                })
                .collect(),
            overprovisioning_factor: Some(number(assignment.overprovisioning)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn locality(group: &LocalityEndpoints, dialect: Dialect<'_>) -> pb::endpoint::LocalityLbEndpoints {
    // A gRPC client skips localities without weight: each counts as much as its endpoints do.
    let weight = match dialect {
        Dialect::Grpc => group.weight.or_else(|| {
            Some(group.endpoints.iter().fold(0, |sum: u32, one| sum.saturating_add(one.weight.max(1))).max(1))
        }),
        Dialect::Pillion | Dialect::Envoy(_) => group.weight,
    };
    pb::endpoint::LocalityLbEndpoints {
        locality: Some(pb::core::Locality {
            region: group.locality.region.clone(),
            zone: group.locality.zone.clone(),
            sub_zone: group.locality.sub_zone.clone(),
        }),
        lb_endpoints: group.endpoints.iter().map(|one| endpoint(one, dialect)).collect(),
        load_balancing_weight: weight.map(number),
        priority: group.priority,
        ..Default::default()
    }
}

fn endpoint(endpoint: &Endpoint, dialect: Dialect<'_>) -> pb::endpoint::LbEndpoint {
    let (status, word) = match (dialect, endpoint.health) {
        // gRPC leaves out what is degraded; its priority says enough.
        (Dialect::Grpc, Health::Stale) => (HealthStatus::Healthy, Some(Health::Stale.as_str())),
        (_, health) => self::health(health),
    };
    let mut labels = fields(&endpoint.other_labels);
    labels.fields.extend(texts(&*endpoint.labels).fields);
    let ours = word.map(|word| ("health".to_owned(), text(word)));
    pb::endpoint::LbEndpoint {
        health_status: status.into(),
        metadata: metadata(BTreeMap::from([
            (pb::METADATA, pb::Struct { fields: ours.into_iter().collect() }),
            (pb::names::SUBSET, labels),
            (pb::names::TRANSPORT, texts(&*endpoint.transport)),
        ])),
        load_balancing_weight: Some(number(endpoint.weight.max(1))),
        host_identifier: Some(pb::endpoint::lb_endpoint::HostIdentifier::Endpoint(pb::endpoint::Endpoint {
            address: Some(address(&endpoint.address)),
            hostname: endpoint.hostname.clone(),
            ..Default::default()
        })),
    }
}

/// Envoy's status, and our word where that does not say it all.
fn health(health: Health) -> (HealthStatus, Option<&'static str>) {
    match health {
        Health::Serving => (HealthStatus::Healthy, None),
        Health::Warning => (HealthStatus::Healthy, Some(Health::Warning.as_str())),
        Health::Stale => (HealthStatus::Degraded, None),
        Health::Draining => (HealthStatus::Draining, None),
        Health::Down => (HealthStatus::Unhealthy, None),
    }
}

fn address(address: &HostAddress) -> pb::core::Address {
    match address {
        HostAddress::Socket(socket) => super::listener::address(*socket),
        HostAddress::Name { host, port } => super::listener::socket_address(host.clone(), *port),
        HostAddress::Pipe(path) => pb::core::Address {
            address: Some(pb::core::address::Address::Pipe(pb::core::Pipe { path: path.clone(), mode: 0 })),
        },
    }
}
