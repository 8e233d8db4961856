//! Ejection and return on a test clock.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pillion_model::cluster::OutlierDetection;
use tokio::time::Instant;

use super::*;
use crate::upstream::state::{Address, ClusterState, Outcome};

struct Cluster {
    state: Arc<ClusterState>,
    endpoints: Vec<Arc<EndpointState>>,
    detector: Detector,
    config: OutlierDetection,
    events: mpsc::Receiver<Event>,
    now: Instant,
    roll: u32,
}

impl Cluster {
    fn new(count: u8, config: OutlierDetection) -> Self {
        let state = Arc::new(ClusterState::new("web"));
        let (sender, events) = mpsc::channel(16);
        state.outlier.configure(Some(&config), &sender);
        let address = |at: u8| Address::Socket(([10, 0, 0, at], 80).into());
        let endpoints = (0..count).map(|at| state.endpoint(&address(at))).collect();
        Self { state, endpoints, detector: Detector::default(), config, events, now: Instant::now(), roll: 0 }
    }

    /// Reports outcomes of one endpoint and handles what they set off.
    fn report(&mut self, at: usize, codes: &[u16]) {
        for &code in codes {
            self.endpoints[at].report(Outcome::Response(code), self.now);
            while let Ok(event) = self.events.try_recv() {
                let Self { detector, config, endpoints, state, now, roll, .. } = self;
                let round =
                    Round { config, endpoints, stats: &state.outlier.stats, now: *now, roll: &|| *roll };
                detector.in_a_row(&round, &event.endpoint, event.kind);
            }
        }
    }

    fn tick_after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        let Self { detector, config, endpoints, state, now, roll, .. } = self;
        let round = Round { config, endpoints, stats: &state.outlier.stats, now: *now, roll: &|| *roll };
        detector.tick(&round);
    }

    fn ejected(&self) -> Vec<usize> {
        (0..self.endpoints.len()).filter(|&at| self.endpoints[at].is_ejected()).collect()
    }
}

fn half() -> OutlierDetection {
    OutlierDetection { max_ejection_percent: 50, ..OutlierDetection::default() }
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_and_a_success_starts_afresh() {
    let mut cluster = Cluster::new(4, half());
    cluster.report(0, &[500, 500, 500, 500, 200, 500, 500, 500, 500]);
    assert_eq!(cluster.ejected(), [0_usize; 0]);
    cluster.report(0, &[500]);
    assert_eq!(cluster.ejected(), [0]);
    assert_eq!(cluster.state.outlier.stats.ejections_enforced_consecutive_5xx.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn ejection_grows_and_ends_on_a_tick() {
    let mut cluster = Cluster::new(4, half());
    cluster.report(0, &[503; 5]);
    cluster.tick_after(29);
    assert_eq!(cluster.ejected(), [0]);
    cluster.tick_after(1);
    assert_eq!(cluster.ejected(), [0_usize; 0]);
    // Again at once: twice as long.
    cluster.report(0, &[503; 5]);
    cluster.tick_after(59);
    assert_eq!(cluster.ejected(), [0]);
    cluster.tick_after(1);
    assert_eq!(cluster.ejected(), [0_usize; 0]);
    // Two quiet intervals take both steps back.
    cluster.tick_after(10);
    cluster.tick_after(10);
    cluster.report(0, &[503; 5]);
    cluster.tick_after(30);
    assert_eq!(cluster.ejected(), [0_usize; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_percentage_bounds_ejections() {
    let mut cluster = Cluster::new(4, half());
    for at in 0..3 {
        cluster.report(at, &[500; 5]);
    }
    assert_eq!(cluster.ejected(), [0, 1]);
    assert_eq!(cluster.state.outlier.stats.ejections_overflow.load(Relaxed), 1);

    let mut small = Cluster::new(9, OutlierDetection::default());
    small.report(0, &[503; 5]);
    assert_eq!(small.ejected(), [0_usize; 0], "10 % of fewer than ten is nobody");
    let mut ten = Cluster::new(10, OutlierDetection::default());
    ten.report(0, &[503; 5]);
    assert_eq!(ten.ejected(), [0]);
    let one = OutlierDetection { always_eject_one: true, ..OutlierDetection::default() };
    let mut one = Cluster::new(2, one);
    one.report(0, &[503; 5]);
    one.report(1, &[503; 5]);
    assert_eq!(one.ejected(), [0]);
}

#[tokio::test(start_paused = true)]
async fn gateway_failures_are_counted_apart_and_enforced_by_share() {
    let config = OutlierDetection {
        consecutive_5xx: 0,
        consecutive_gateway_failure: 3,
        enforcing_consecutive_gateway_failure: 40,
        ..half()
    };
    let mut cluster = Cluster::new(4, config);
    cluster.report(0, &[502, 503, 500, 504, 502]);
    assert_eq!(cluster.state.outlier.stats.ejections_detected_consecutive_gateway_failure.load(Relaxed), 0);
    cluster.roll = 40;
    cluster.report(0, &[503]);
    assert_eq!(cluster.ejected(), [0_usize; 0], "a draw of 40 is not under 40 %");
    cluster.roll = 39;
    cluster.report(0, &[503; 3]);
    assert_eq!(cluster.ejected(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_success_rate_far_below_the_others_ejects() {
    let config = OutlierDetection { consecutive_5xx: 0, ..half() };
    let mut cluster = Cluster::new(6, config);
    let run = |cluster: &mut Cluster, bad: usize| {
        for at in 0..6 {
            let failures = if at == 5 { bad } else { at % 2 };
            let codes: Vec<u16> = (0..100).map(|n| if n < failures { 500 } else { 200 }).collect();
            cluster.report(at, &codes);
        }
        cluster.tick_after(10);
    };
    run(&mut cluster, 1);
    assert_eq!(cluster.ejected(), [0_usize; 0]);
    run(&mut cluster, 30);
    assert_eq!(cluster.ejected(), [5]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_percentage_at_the_threshold_ejects() {
    let mut config = OutlierDetection { consecutive_5xx: 0, ..half() };
    config.failure_percentage.enforcing = 100;
    config.success_rate.minimum_hosts = 100;
    let mut cluster = Cluster::new(5, config);
    for at in 0..5 {
        let failures = [42, 43, 0, 0, 0][at];
        let codes: Vec<u16> = (0..50).map(|n| if n < failures { 500 } else { 200 }).collect();
        cluster.report(at, &codes);
    }
    cluster.tick_after(10);
    assert_eq!(cluster.ejected(), [1], "84 % stays, 86 % goes");
}
