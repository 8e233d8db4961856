//! Answers to health checks, as far as they are not sent on.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use pillion_model::filter::HealthCheckFilter;

use super::buffer;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::names::{HEALTH_CHECKED_CLUSTER, IMMEDIATE_HEALTH_CHECK_FAIL};
use crate::local_reply::LocalReply;
use crate::snapshot::Snapshot;

/// Answers a health check.
pub(super) async fn answer(x: &mut Exchange, filter: &HealthCheckFilter) -> Step {
    if !filter.headers.iter().all(|matcher| matcher.is_match(&x.head)) {
        return Ok(());
    }
    x.marks.health_check = true;
    x.record.health_check = true;
    let failing = is_failing(x);
    if filter.pass_through && !failing {
        return Ok(());
    }
    // A body is let go, but waited for.
    drop(buffer::read(x, usize::MAX >> 1).await?);
    let (is_healthy, details) =
        if failing { (false, "health_check_failed") } else { judge(filter, &x.snapshot) };
    let status = if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut reply = LocalReply::direct(status, Bytes::new(), details);
    if !is_healthy {
        reply.flags = Flags::FAILED_LOCAL_HEALTH_CHECK;
    }
    Err(reply)
}

/// Whether enough endpoints of every cluster are healthy.
fn judge(filter: &HealthCheckFilter, snapshot: &Snapshot) -> (bool, &'static str) {
    let mut details = "health_check_ok";
    for (name, &share) in &filter.min_healthy {
        details = "health_check_ok_cluster_healthy";
        let Some(cluster) = snapshot.clusters.get(name) else {
            return (false, "health_check_failed_no_cluster_found");
        };
        let hosts = &cluster.hosts().hosts;
        if hosts.is_empty() && share > 0 {
            return (false, "health_check_failed_cluster_empty");
        }
        let healthy = hosts.iter().filter(|host| host.is_healthy() || host.is_degraded()).count();
        if 100 * healthy < hosts.len() * share as usize {
            return (false, "health_check_failed_cluster_unhealthy");
        }
    }
    (true, details)
}

/// Tells whoever asked which cluster answered, and everybody else that no more should be sent.
pub(super) fn annotate(x: &Exchange, headers: &mut HeaderMap) {
    if x.marks.health_check {
        let own = HeaderValue::from_str(&x.connection.worker.shared().node_cluster);
        headers.insert(&HEALTH_CHECKED_CLUSTER, own.unwrap_or(HeaderValue::from_static("")));
    } else if is_failing(x) {
        headers.insert(&IMMEDIATE_HEALTH_CHECK_FAIL, HeaderValue::from_static("true"));
    }
}

/// Whether an operator wants health checks to fail.
fn is_failing(x: &Exchange) -> bool {
    x.connection.worker.shared().health_failed.load(Relaxed)
}
