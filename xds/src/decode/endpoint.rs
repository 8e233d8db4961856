//! Endpoints.

use std::collections::BTreeMap;
use std::mem::take;

use pillion_model::endpoint::{Endpoint, Fraction, HostAddress, LoadAssignment, Locality, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_model::metadata::{Fields, Value};

use super::Context;
use super::context::ignored;
use super::matcher::text;
use super::metadata::fields;
use crate::pb;
use pb::core::HealthStatus;
use pb::endpoint::lb_endpoint::HostIdentifier;
use pb::endpoint::locality_lb_endpoints::LbConfig;

/// Envoy's overprovisioning factor where none is given.
const OVERPROVISIONING: u32 = 140;

/// Endpoints that are dialled as they are: names to resolve are refused.
pub(super) fn dialable(cx: &mut Context, message: pb::endpoint::ClusterLoadAssignment) -> LoadAssignment {
    let assignment = assignment(cx, message);
    for (group, locality) in assignment.localities.iter().enumerate() {
        for (index, endpoint) in locality.endpoints.iter().enumerate() {
            if let HostAddress::Name { host, .. } = &endpoint.address {
                cx.refuse_at(
                    format_args!(
                        "endpoints[{group}].lb_endpoints[{index}].endpoint.address.socket_address.address"
                    ),
                    format!("got `{host}`, want an IP address; names belong into STRICT_DNS and LOGICAL_DNS clusters"),
                );
            }
        }
    }
    assignment
}

pub(super) fn assignment(
    cx: &mut Context,
    mut message: pb::endpoint::ClusterLoadAssignment,
) -> LoadAssignment {
    let cluster = take(&mut message.cluster_name);
    let localities = cx.each("endpoints", take(&mut message.endpoints), locality);
    let (drops, overprovisioning) =
        cx.some("policy", message.policy.take(), policy).unwrap_or((Vec::new(), OVERPROVISIONING));
    cx.rest(&message);
    LoadAssignment { cluster, localities, drops, overprovisioning }
}

fn policy(
    cx: &mut Context,
    mut policy: pb::endpoint::cluster_load_assignment::Policy,
) -> (Vec<(String, Fraction)>, u32) {
    let drops = cx.each("drop_overloads", take(&mut policy.drop_overloads), |cx, drop| {
        let share = cx.some("drop_percentage", drop.drop_percentage, Context::fraction);
        (drop.category, share.unwrap_or(Fraction { numerator: 0, denominator: 100 }))
    });
    let factor = policy.overprovisioning_factor.take().map_or(OVERPROVISIONING, |factor| factor.value);
    if factor == 0 {
        cx.refuse_at("overprovisioning_factor", "got 0, want at least 1");
    }
    cx.rest(&policy);
    (drops, factor)
}

fn locality(cx: &mut Context, mut group: pb::endpoint::LocalityLbEndpoints) -> LocalityEndpoints {
    ignored!(cx, group, metadata, proximity);
    let locality = group.locality.take().unwrap_or_default();
    let mut endpoints = take(&mut group.lb_endpoints);
    let mut field = "lb_endpoints";
    if let Some(LbConfig::LoadBalancerEndpoints(list)) = &mut group.lb_config {
        endpoints = take(&mut list.lb_endpoints);
        field = "load_balancer_endpoints.lb_endpoints";
        group.lb_config = None;
    }
    let endpoints = cx.each(field, endpoints, endpoint);
    let weight = group.load_balancing_weight.take().map(|weight| weight.value);
    let priority = take(&mut group.priority);
    cx.rest(&group);
    LocalityEndpoints {
        locality: Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone },
        weight,
        priority,
        endpoints,
    }
}

fn endpoint(cx: &mut Context, mut one: pb::endpoint::LbEndpoint) -> Endpoint {
    let metadata = one.metadata.take().unwrap_or_default();
    let parts = cx.at("metadata", |cx| self::metadata(cx, metadata));
    let health = health(cx, take(&mut one.health_status), &parts.ours);
    let weight = one.load_balancing_weight.take().map_or(1, |weight| weight.value);
    if weight == 0 {
        cx.refuse_at("load_balancing_weight", "got 0, want at least 1");
    }
    let (address, hostname) = match one.host_identifier.take() {
        Some(HostIdentifier::Endpoint(inner)) => cx.at("endpoint", |cx| address(cx, inner)),
        Some(HostIdentifier::EndpointName(_)) => {
            cx.refuse_at("endpoint_name", "is not supported; write the endpoint itself");
            (HostAddress::Pipe(String::new()), String::new())
        }
        None => {
            cx.missing("endpoint");
            (HostAddress::Pipe(String::new()), String::new())
        }
    };
    cx.rest(&one);
    Endpoint {
        address,
        hostname,
        weight,
        health,
        labels: parts.labels.into(),
        other_labels: parts.other_labels,
        transport: parts.transport.into(),
    }
}

struct Metadata {
    ours: pb::Struct,
    labels: BTreeMap<String, String>,
    other_labels: Fields,
    transport: BTreeMap<String, String>,
}

fn metadata(cx: &mut Context, mut metadata: pb::core::Metadata) -> Metadata {
    let mut part = |name| metadata.filter_metadata.remove(name).unwrap_or_default();
    let (ours, subset, transport) = (part(pb::METADATA), part(pb::names::SUBSET), part(pb::names::TRANSPORT));
    ignored!(cx, metadata, filter_metadata, typed_filter_metadata);
    let (mut labels, mut other_labels) = (BTreeMap::new(), Fields::new());
    for (key, value) in fields(subset) {
        match value {
            Value::Text(text) => drop(labels.insert(key, text)),
            other => drop(other_labels.insert(key, other)),
        }
    }
    let transport =
        cx.at(format_args!("filter_metadata[\"{}\"]", pb::names::TRANSPORT), |cx| texts(cx, transport));
    Metadata { ours, labels, other_labels, transport }
}

/// A struct of texts.
pub(super) fn texts(cx: &mut Context, fields: pb::Struct) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in fields.fields {
        match value.kind {
            Some(pb::Kind::StringValue(text)) => drop(all.insert(key, text)),
            _ => cx.refuse_at(key, "want a text"),
        }
    }
    all
}

fn health(cx: &mut Context, status: i32, ours: &pb::Struct) -> Health {
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => {
            if text(ours, "health") == Some(Health::Warning.as_str()) {
                Health::Warning
            } else {
                Health::Serving
            }
        }
        Ok(HealthStatus::Degraded) => Health::Stale,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Health::Down,
        Err(_) => {
            cx.refuse_at("health_status", format!("got {status}, want a HealthStatus"));
            Health::Down
        }
    }
}

fn address(cx: &mut Context, mut endpoint: pb::endpoint::Endpoint) -> (HostAddress, String) {
    // There are no active health checks that it could change.
    ignored!(cx, endpoint, health_check_config, observability_name);
    let hostname = take(&mut endpoint.hostname);
    let address = match endpoint.address.take() {
        Some(address) => cx.at("address", |cx| super::listener::host_address(cx, address)),
        None => {
            cx.missing("address");
            HostAddress::Pipe(String::new())
        }
    };
    cx.rest(&endpoint);
    (address, hostname)
}
