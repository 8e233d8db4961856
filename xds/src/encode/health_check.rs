//! Active health checks.

use std::ops::Range;

use pillion_model::health_check::{HealthCheck, HealthChecker, HttpHealthCheck};

use super::{boolean, duration, number};
use crate::pb;
use pb::core::health_check::{self, HealthChecker as Checker};
use pb::types::CodecClientType;

pub(super) fn health_check(check: &HealthCheck) -> pb::core::HealthCheck {
    let pace = &check.pace;
    pb::core::HealthCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(pace.interval)),
        initial_jitter: Some(duration(pace.initial_jitter)),
        interval_jitter: Some(duration(pace.jitter)),
        interval_jitter_percent: pace.jitter_percent,
        unhealthy_threshold: Some(number(check.unhealthy_threshold)),
        healthy_threshold: Some(number(check.healthy_threshold)),
        reuse_connection: Some(boolean(check.reuse_connection)),
        no_traffic_interval: Some(duration(pace.no_traffic)),
        no_traffic_healthy_interval: Some(duration(pace.no_traffic_healthy)),
        unhealthy_interval: Some(duration(pace.unhealthy)),
        unhealthy_edge_interval: Some(duration(pace.unhealthy_edge)),
        healthy_edge_interval: Some(duration(pace.healthy_edge)),
        health_checker: Some(match &check.checker {
            HealthChecker::Http(check) => Checker::HttpHealthCheck(http(check)),
            HealthChecker::Tcp { send, receive } => Checker::TcpHealthCheck(health_check::TcpHealthCheck {
                send: (!send.is_empty()).then(|| payload(send)),
                receive: receive.iter().map(|bytes| payload(bytes)).collect(),
                proxy_protocol_config: None,
            }),
            HealthChecker::Grpc { service, authority } => {
                Checker::GrpcHealthCheck(health_check::GrpcHealthCheck {
                    service_name: service.clone(),
                    authority: authority.clone(),
                    initial_metadata: Vec::new(),
                })
            }
        }),
        ..Default::default()
    }
}

fn http(check: &HttpHealthCheck) -> health_check::HttpHealthCheck {
    let codec = if check.http2 { CodecClientType::Http2 } else { CodecClientType::Http1 };
    let method = pb::core::RequestMethod::from_str_name(&check.method);
    health_check::HttpHealthCheck {
        host: check.host.clone(),
        path: check.path.clone(),
        request_headers_to_add: check
            .headers
            .iter()
            .map(|(key, value)| pb::core::HeaderValueOption {
                header: Some(pb::core::HeaderValue {
                    key: key.clone(),
                    value: value.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect(),
        expected_statuses: check.expected.iter().map(range).collect(),
        retriable_statuses: check.retriable.iter().map(range).collect(),
        codec_client_type: codec.into(),
        method: method.unwrap_or_default().into(),
        ..Default::default()
    }
}

fn range(range: &Range<u16>) -> pb::types::Int64Range {
    pb::types::Int64Range { start: range.start.into(), end: range.end.into() }
}

fn payload(bytes: &[u8]) -> health_check::Payload {
    health_check::Payload { payload: Some(health_check::payload::Payload::Binary(bytes.to_vec())) }
}
