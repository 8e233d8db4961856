//! HTTP filters, and what routes say of them.

use std::collections::HashMap;

use pillion_model::filter::HealthCheckFilter;
use pillion_model::http::{CorsPolicy, FaultPolicy, HttpFilter};
use pillion_model::route::{FilterOverrides, HeaderChange, HeaderChanges};

use super::matcher::{header, string};
use super::route::addition;
use super::{Dialect, any, boolean, duration, fraction, number, percent};
use crate::pb;

/// The filters in order. Their names are those by which routes set them; gRPC wants each once.
pub(super) fn filters(filters: &[HttpFilter], dialect: Dialect<'_>) -> Vec<pb::hcm::HttpFilter> {
    let mut all: Vec<pb::hcm::HttpFilter> = filters.iter().map(filter).collect();
    if matches!(dialect, Dialect::Grpc) {
        let mut seen: HashMap<String, u32> = HashMap::new();
        for one in &mut all {
            let times = seen.entry(one.name.clone()).or_default();
            *times += 1;
            if *times > 1 {
                one.name = format!("{}.{times}", one.name);
            }
        }
    }
    all
}

fn filter(filter: &HttpFilter) -> pb::hcm::HttpFilter {
    let (disabled, filter) = match filter {
        HttpFilter::OffByDefault(inner) => (true, &**inner),
        filter => (false, filter),
    };
    pb::hcm::HttpFilter {
        name: filter.kind().map_or(pb::names::ROUTER, pb::names::of).to_owned(),
        config_type: Some(pb::hcm::http_filter::ConfigType::TypedConfig(config(filter))),
        disabled,
        ..Default::default()
    }
}

fn config(filter: &HttpFilter) -> pb::Any {
    match filter {
        HttpFilter::Router { suppress_envoy_headers } => {
            any(&pb::router::Router { suppress_envoy_headers: *suppress_envoy_headers, ..Default::default() })
        }
        HttpFilter::Rbac { rules, shadow_rules } => any(&pb::http_rbac::Rbac {
            rules: rules.as_ref().map(super::rbac::rules),
            shadow_rules: shadow_rules.as_ref().map(super::rbac::rules),
            ..Default::default()
        }),
        HttpFilter::Fault(policy) => any(&fault(policy)),
        HttpFilter::Cors => any(&pb::cors::Cors {}),
        HttpFilter::HeaderMutation(mutation) => any(&pb::header_mutation::HeaderMutation {
            mutations: Some(mutations(&mutation.changes)),
            most_specific_header_mutations_wins: mutation.most_specific_wins,
        }),
        HttpFilter::Buffer { bytes_max } => any(&buffer(*bytes_max)),
        HttpFilter::HealthCheck(filter) => any(&health_check(filter)),
        HttpFilter::LocalRateLimit(limit) => any(&super::rate_limit::filter(limit)),
        HttpFilter::ExtAuthz(authz) => any(&super::authz::filter(authz)),
        HttpFilter::JwtAuthn(jwt) => any(&super::jwt::filter(jwt)),
        HttpFilter::OffByDefault(inner) => config(inner),
    }
}

pub(super) fn fault(policy: &FaultPolicy) -> pb::fault::HttpFault {
    use pb::common_fault::fault_delay::{FaultDelaySecifier as D, HeaderDelay};
    use pb::fault::fault_abort::{ErrorType as E, HeaderAbort};
    let delay = policy.delay.map(|(time, share)| (D::FixedDelay(duration(time)), share));
    let delay = delay.or_else(|| policy.header_delay.map(|share| (D::HeaderDelay(HeaderDelay {}), share)));
    let abort = policy.abort.map(|(status, share)| (E::HttpStatus(status.into()), share));
    let abort = abort.or_else(|| policy.grpc_abort.map(|(status, share)| (E::GrpcStatus(status), share)));
    let abort = abort.or_else(|| policy.header_abort.map(|share| (E::HeaderAbort(HeaderAbort {}), share)));
    pb::fault::HttpFault {
        delay: delay.map(|(kind, share)| pb::common_fault::FaultDelay {
            percentage: Some(fraction(share)),
            fault_delay_secifier: Some(kind),
        }),
        abort: abort.map(|(kind, share)| pb::fault::FaultAbort {
            percentage: Some(fraction(share)),
            error_type: Some(kind),
            ..Default::default()
        }),
        headers: policy.headers.iter().map(header).collect(),
        ..Default::default()
    }
}

fn mutations(changes: &HeaderChanges) -> pb::header_mutation::Mutations {
    use pb::mutation_rules::{HeaderMutation, header_mutation::Action};
    let many = |changes: &[HeaderChange]| {
        let action = |change| match addition(change) {
            Ok(option) => Action::Append(option),
            Err(name) => Action::Remove(name.to_owned()),
        };
        changes.iter().map(|change| HeaderMutation { action: Some(action(change)) }).collect()
    };
    pb::header_mutation::Mutations {
        request_mutations: many(&changes.request),
        response_mutations: many(&changes.response),
        ..Default::default()
    }
}

fn buffer(bytes_max: u32) -> pb::buffer::Buffer {
    pb::buffer::Buffer { max_request_bytes: Some(number(bytes_max)) }
}

fn health_check(filter: &HealthCheckFilter) -> pb::health_check::HealthCheck {
    let healthy = filter.min_healthy.iter().map(|(name, share)| (name.clone(), percent(*share)));
    pb::health_check::HealthCheck {
        pass_through_mode: Some(boolean(filter.pass_through)),
        cluster_min_healthy_percentages: healthy.collect(),
        headers: filter.headers.iter().map(header).collect(),
        ..Default::default()
    }
}

/// Settings by filter. A gRPC client has faults, and refuses settings of what it does not have.
pub(super) fn overrides(filters: &FilterOverrides, dialect: Dialect<'_>) -> HashMap<String, pb::Any> {
    let mut all = HashMap::new();
    if matches!(dialect, Dialect::Grpc) {
        let fault = filters.fault.as_ref().map(|policy| (pb::names::FAULT.to_owned(), any(&fault(policy))));
        return fault.into_iter().collect();
    }
    for (kind, on) in &filters.switched {
        let config = on.then(pb::Any::default);
        let switch = pb::route::FilterConfig { config, disabled: !on, is_optional: false };
        all.insert(pb::names::of(*kind).to_owned(), any(&switch));
    }
    let mut insert = |name: &str, settings| all.insert(name.to_owned(), settings);
    if let Some(rules) = &filters.rbac {
        let rbac = rules.as_ref().map(|rules| pb::http_rbac::Rbac {
            rules: Some(super::rbac::rules(rules)),
            ..Default::default()
        });
        insert(pb::names::RBAC, any(&pb::http_rbac::RbacPerRoute { rbac }));
    }
    if let Some(policy) = &filters.fault {
        insert(pb::names::FAULT, any(&fault(policy)));
    }
    if let Some(policy) = &filters.cors {
        insert(pb::names::CORS, any(&cors(policy)));
    }
    if let Some(changes) = &filters.header_mutation {
        let mutations = Some(mutations(changes));
        insert(pb::names::HEADER_MUTATION, any(&pb::header_mutation::HeaderMutationPerRoute { mutations }));
    }
    if let Some(limit) = filters.buffer {
        use pb::buffer::buffer_per_route::Override;
        let settings = limit.map_or(Override::Disabled(true), |bytes| Override::Buffer(buffer(bytes)));
        insert(pb::names::BUFFER, any(&pb::buffer::BufferPerRoute { r#override: Some(settings) }));
    }
    if let Some(said) = &filters.jwt {
        insert(pb::names::JWT_AUTHN, any(&super::jwt::of_route(said)));
    }
    if let Some(said) = &filters.authz {
        insert(pb::names::EXT_AUTHZ, any(&super::authz::of_route(said)));
    }
    if let Some(limit) = &filters.local_rate_limit {
        insert(pb::names::LOCAL_RATE_LIMIT, any(&super::rate_limit::filter(limit)));
    }
    all
}

fn cors(policy: &CorsPolicy) -> pb::cors::CorsPolicy {
    pb::cors::CorsPolicy {
        allow_origin_string_match: policy.allow_origins.iter().map(string).collect(),
        allow_methods: policy.allow_methods.clone(),
        allow_headers: policy.allow_headers.clone(),
        expose_headers: policy.expose_headers.clone(),
        max_age: policy.max_age.clone(),
        allow_credentials: policy.allow_credentials.map(boolean),
        ..Default::default()
    }
}
