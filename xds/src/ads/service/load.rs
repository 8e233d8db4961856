//! Load reporting (LRS): what foreign clients say of the requests they made, summed by cluster.
//!
//! A client reports differences since its last report; a report that is lost is not repeated, so sums may
//! fall short. Of clusters over [`CLUSTERS_MAX`] only their number of reports is kept.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf::Duration;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, Streaming};

use super::lock;

/// How often clients report.
const INTERVAL_SECONDS: i64 = 10;
/// Clusters of which sums are kept.
const CLUSTERS_MAX: usize = 10_000;

/// Sums of what was reported. Cheap to clone: clones share them.
#[derive(Clone, Debug, Default)]
pub struct LoadReports(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    clusters: BTreeMap<String, Load>,
    left_out: u64,
}

/// Requests to one cluster, of all clients that report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Answered well.
    pub successes: u64,
    /// Failed.
    pub errors: u64,
    /// Dropped by the client on purpose.
    pub dropped: u64,
}

impl LoadReports {
    /// The tonic service.
    #[must_use]
    pub fn into_server(self) -> LoadReportingServiceServer<Self> {
        LoadReportingServiceServer::new(self)
    }

    /// Sums since the start, by cluster.
    #[must_use]
    pub fn sums(&self) -> BTreeMap<String, Load> {
        lock(&self.0).clusters.clone()
    }

    /// Reports of clusters that there was no room for.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        lock(&self.0).left_out
    }

    fn take(&self, reports: &[ClusterStats]) {
        let mut sums = lock(&self.0);
        for report in reports {
            let is_known = sums.clusters.contains_key(&report.cluster_name);
            if !is_known && sums.clusters.len() >= CLUSTERS_MAX {
                sums.left_out += 1;
                continue;
            }
            let load = sums.clusters.entry(report.cluster_name.clone()).or_default();
            load.dropped = load.dropped.saturating_add(report.total_dropped_requests);
            for locality in &report.upstream_locality_stats {
                load.successes = load.successes.saturating_add(locality.total_successful_requests);
                load.errors = load.errors.saturating_add(locality.total_error_requests);
            }
        }
    }
}

#[tonic::async_trait]
impl LoadReportingService for LoadReports {
    type StreamLoadStatsStream = Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        // One answer, to the first request; then reports are only taken in.
        let state = (self.clone(), request.into_inner(), false);
        let answers = stream::try_unfold(state, async |(reports, mut requests, mut is_answered)| {
            while let Some(request) = requests.message().await? {
                reports.take(&request.cluster_stats);
                if !std::mem::replace(&mut is_answered, true) {
                    return Ok(Some((interest(), (reports, requests, is_answered))));
                }
            }
            Ok::<_, Status>(None)
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

fn interest() -> LoadStatsResponse {
    LoadStatsResponse {
        send_all_clusters: true,
        load_reporting_interval: Some(Duration { seconds: INTERVAL_SECONDS, nanos: 0 }),
        ..LoadStatsResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::endpoint::v3::UpstreamLocalityStats;

    use super::*;

    #[test]
    fn reports_are_summed_by_cluster_up_to_a_bound() {
        let reports = LoadReports::default();
        let report = |cluster: String, successes| ClusterStats {
            cluster_name: cluster,
            total_dropped_requests: 1,
            upstream_locality_stats: vec![UpstreamLocalityStats {
                total_successful_requests: successes,
                total_error_requests: 2,
                ..UpstreamLocalityStats::default()
            }],
            ..ClusterStats::default()
        };
        reports.take(&[report("a".into(), 3), report("a".into(), u64::MAX)]);
        assert_eq!(reports.sums()["a"], Load { successes: u64::MAX, errors: 4, dropped: 2 });
        for number in 0..CLUSTERS_MAX {
            reports.take(&[report(number.to_string(), 1)]);
        }
        assert_eq!((reports.sums().len(), reports.left_out()), (CLUSTERS_MAX, 1));
        reports.take(&[report("a".into(), 1)]);
        assert_eq!(reports.left_out(), 1, "it is known");
    }
}
