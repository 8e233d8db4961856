//! Answers to health checks.

use std::mem::take;

use pillion_model::filter::HealthCheckFilter;

use crate::decode::Context;
use crate::decode::matcher::header;
use crate::pb;

pub(super) fn filter(cx: &mut Context, mut m: pb::health_check::HealthCheck) -> HealthCheckFilter {
    let pass_through = m.pass_through_mode.take().map(|on| on.value);
    if pass_through.is_none() {
        cx.missing("pass_through_mode");
    }
    let mut filter = HealthCheckFilter {
        pass_through: pass_through.unwrap_or_default(),
        headers: cx.each("headers", take(&mut m.headers), header),
        ..HealthCheckFilter::default()
    };
    for (name, share) in take(&mut m.cluster_min_healthy_percentages) {
        let field = format!("cluster_min_healthy_percentages[\"{name}\"]");
        let share = cx.percent(&field, share);
        filter.min_healthy.insert(name, share);
    }
    if filter.pass_through && !filter.min_healthy.is_empty() {
        cx.refuse_at("cluster_min_healthy_percentages", "cannot stand beside pass_through_mode");
    }
    cx.rest(&m);
    filter
}
