//! What a stream knows of each of its instances, and what that one is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pillion_model::name::ServiceName;
use pillion_xds::mesh::to_proxy::Message as Answer;
use pillion_xds::mesh::{HealthCheck, Registered};

use crate::control::Checks;
use crate::lease::{Lease, beat_interval};
use crate::resolve::ProbeKind;

/// One instance on a stream.
pub(super) struct Slot {
    pub(super) generation: u64,
    pub(super) address: IpAddr,
    pub(super) lease: Arc<Lease>,
    /// As last told.
    pub(super) check: Option<Box<HealthCheck>>,
}

impl Slot {
    pub(super) fn registered(&self, slot: u32) -> Answer {
        Answer::Registered(Registered {
            slot,
            generation: self.generation,
            beat_interval_ms: self.interval_ms(),
            health_check: self.check.as_deref().cloned(),
            address: self.address.to_string(),
        })
    }

    pub(super) fn interval_ms(&self) -> u32 {
        millis(beat_interval(self.lease.ttl()))
    }
}

pub(super) fn check_of(checks: &Checks, service: &ServiceName) -> Option<HealthCheck> {
    let plan = checks.get(service)?;
    Some(HealthCheck {
        http_path: match &plan.kind {
            ProbeKind::Http(path) => path.clone(),
            ProbeKind::Tcp => String::new(),
        },
        interval_ms: millis(plan.interval),
        timeout_ms: millis(plan.timeout),
        healthy: plan.healthy,
        unhealthy: plan.unhealthy,
        port: plan.port.clone(),
    })
}

pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
