//! Clusters made of others: the priorities of all of them stand one after the other, and each cluster
//! sends by its own policies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pillion_model::cluster::{Cluster as Config, Discovery};

use super::balance::Loads;
use super::cluster::Cluster;
use super::failure::{Cause, Failure};
use super::send::Attempt;
use super::worker::Pools;

/// What is wrong with `config`, if it is an aggregate: one within another is not supported.
pub(super) fn wrong(config: &Config, all: &BTreeMap<String, Config>) -> Option<String> {
    let Discovery::Aggregate(names) = &config.discovery else { return None };
    let is_aggregate =
        |name: &&String| all.get(*name).is_some_and(|one| matches!(one.discovery, Discovery::Aggregate(_)));
    let inner = names.iter().find(is_aggregate)?;
    Some(format!("clusters: `{inner}` is an aggregate itself, which is not supported; name its clusters"))
}

impl Pools {
    /// Of an aggregate, the cluster that takes the next try; `attempt` is told which of its endpoints.
    pub(super) fn member(
        &self,
        cluster: &Arc<Cluster>,
        attempt: &mut Attempt,
    ) -> Result<Option<Arc<Cluster>>, Failure> {
        let Some(members) = cluster.members() else { return Ok(None) };
        let (mut counts, mut places) = (Vec::new(), Vec::new());
        for member in members.iter() {
            let hosts = self.view(member).hosts();
            for (level, count) in hosts.levels.iter().enumerate().filter(|(_, count)| count.total > 0) {
                counts.push(*count);
                places.push((member, level));
            }
        }
        let mut loads = Loads::share(&counts, OVERPROVISIONING, cluster.config.panic_threshold_percent);
        // Who is in panic is each cluster's own affair.
        loads.panic.fill(false);
        let (place, source) = loads.choose(fastrand::u64(..));
        let Some((member, level)) = places.get(place) else {
            cluster.state.stats.upstream_cx_none_healthy.fetch_add(1, Relaxed);
            return Err(Failure::new(Cause::NoHealthyUpstream));
        };
        attempt.level = Some((*level, source));
        Ok(Some(Arc::clone(member)))
    }
}

/// Percent, Envoy's default.
const OVERPROVISIONING: u32 = 140;
