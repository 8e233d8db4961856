//! Distributions over endpoints that are never dialled.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pillion_model::cluster::{LoadBalancing, SlowStart};
use pillion_model::endpoint::{LoadAssignment, Locality, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_net::tls::NoSecrets;
use tokio::time::Instant;

use super::Turns;
use crate::upstream::tests::support::{assignment, config, endpoint};
use crate::upstream::{Attempt, Cause, Cluster, Clusters};

fn address(at: usize) -> SocketAddr {
    format!("10.0.0.{}:80", at + 1).parse().unwrap()
}

fn addresses(count: usize) -> Vec<SocketAddr> {
    (0..count).map(address).collect()
}

/// Endpoints are added one after the other; the last one's share after some time.
#[tokio::test(start_paused = true)]
async fn slow_start_gives_newcomers_a_share_that_grows() {
    for (policy, aggression, age_s, want) in [
        (LoadBalancing::RoundRobin, 1.0, 0, 0.1 / 2.1),
        (LoadBalancing::RoundRobin, 1.0, 5, 0.5 / 2.5),
        (LoadBalancing::RoundRobin, 2.0, 5, 0.707 / 2.707),
        (LoadBalancing::LeastRequest { choices: 2 }, 1.0, 5, 0.5 / 2.5),
        (LoadBalancing::RoundRobin, 1.0, 11, 1.0 / 3.0),
        // Others know nothing of it.
        (LoadBalancing::Random, 1.0, 5, 1.0 / 3.0),
    ] {
        let mut config = config("web");
        config.slow_start =
            Some(SlowStart { window: Duration::from_secs(10), aggression, min_percent: 10.0 });
        config.load_balancing = policy.clone();
        let (clusters, configs) = (Clusters::new(), BTreeMap::from([("web".to_owned(), config)]));
        let mut map = Arc::default();
        for (count, wait_s) in [(2, 60), (3, age_s)] {
            let endpoints = BTreeMap::from([("web".to_owned(), assignment(&addresses(count)))]);
            map = clusters.apply(&configs, &endpoints, &NoSecrets).0;
            tokio::time::advance(Duration::from_secs(wait_s)).await;
        }
        let counts = tally(&map["web"], 3000);
        let share = counts[2] as f64 / 3000.0;
        assert!((share - want).abs() < 0.04, "{policy:?} after {age_s} s: {counts:?}, want {want}");
    }
}

fn cluster(policy: LoadBalancing, endpoints: LoadAssignment) -> Arc<Cluster> {
    let mut config = config("web");
    config.load_balancing = policy;
    let clusters = Clusters::new();
    let endpoints = BTreeMap::from([("web".to_owned(), endpoints)]);
    let (map, rejected) =
        clusters.apply(&BTreeMap::from([("web".to_owned(), config)]), &endpoints, &NoSecrets);
    assert_eq!(rejected, []);
    Arc::clone(&map["web"])
}

fn pick(cluster: &Cluster, turns: &mut Turns, attempt: &Attempt) -> Result<usize, Cause> {
    cluster.hosts().pick(&cluster.state, turns, attempt, Instant::now())
}

/// How often each endpoint is chosen in `draws`.
fn tally(cluster: &Cluster, draws: usize) -> Vec<usize> {
    let mut turns = Turns::default();
    let mut counts = vec![0; cluster.hosts().hosts.len()];
    for _ in 0..draws {
        counts[pick(cluster, &mut turns, &Attempt::default()).unwrap()] += 1;
    }
    counts
}

#[test]
fn round_robin_goes_round_and_follows_weights() {
    assert_eq!(tally(&cluster(LoadBalancing::RoundRobin, assignment(&addresses(4))), 400), [100; 4]);
    let mut weighted = assignment(&addresses(3));
    for (endpoint, weight) in weighted.localities[0].endpoints.iter_mut().zip([1, 2, 5]) {
        endpoint.weight = weight;
    }
    let counts = tally(&cluster(LoadBalancing::RoundRobin, weighted), 800);
    for (count, want) in counts.iter().zip([100, 200, 500_usize]) {
        assert!(count.abs_diff(want) <= 1, "{counts:?}");
    }
}

#[test]
fn random_and_two_choices_spread_evenly_when_all_are_alike() {
    fastrand::seed(7);
    for policy in [LoadBalancing::Random, LoadBalancing::Ewma, LoadBalancing::LeastRequest { choices: 2 }] {
        let counts = tally(&cluster(policy.clone(), assignment(&addresses(4))), 4000);
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 200), "{policy:?}: {counts:?}");
    }
}

#[test]
fn the_slow_and_the_busy_get_less() {
    fastrand::seed(7);
    let slow = cluster(LoadBalancing::Ewma, assignment(&addresses(4)));
    for (at, host) in slow.hosts().hosts.iter().enumerate() {
        let latency = Duration::from_millis(if at == 0 { 200 } else { 10 });
        host.endpoint.ewma.observe(latency, Instant::now());
    }
    let counts = tally(&slow, 1000);
    assert_eq!(counts[0], 0, "the slowest never wins among two: {counts:?}");

    let new = cluster(LoadBalancing::Ewma, assignment(&addresses(2)));
    new.hosts().hosts[0].endpoint.ewma.observe(Duration::from_micros(200), Instant::now());
    assert_eq!(tally(&new, 100)[1], 100, "whoever has not answered yet is asked");
    new.hosts().hosts[1].endpoint.active.store(1, Relaxed);
    assert_eq!(tally(&new, 100)[1], 0, "but with one request at a time");
    new.hosts().hosts[0].endpoint.waiting.store(2, Relaxed);
    assert_eq!(tally(&new, 100)[0], 0, "where requests wait for a connection, others do not join them");

    let busy = cluster(LoadBalancing::LeastRequest { choices: 2 }, assignment(&addresses(2)));
    busy.hosts().hosts[0].endpoint.active.store(5, Relaxed);
    let counts = tally(&busy, 1000);
    // Chosen only if drawn twice: one in four.
    assert!(counts[0].abs_diff(250) < 60, "{counts:?}");
}

#[test]
fn least_request_with_weights_counts_active_requests() {
    let mut weighted = assignment(&addresses(2));
    weighted.localities[0].endpoints[1].weight = 3;
    let cluster = cluster(LoadBalancing::LeastRequest { choices: 2 }, weighted);
    let counts = tally(&cluster, 400);
    assert!(counts[1].abs_diff(300) <= 2, "{counts:?}");
    cluster.hosts().hosts[1].endpoint.active.store(2, Relaxed);
    let counts = tally(&cluster, 400);
    assert!(counts[1].abs_diff(200) <= 2, "weight 3 over 2 + 1 active: {counts:?}");
}

#[test]
fn hashing_sticks_and_moves_on_when_the_endpoint_is_to_be_avoided() {
    for policy in [
        LoadBalancing::RingHash { size_min: 1024, size_max: 8_388_608 },
        LoadBalancing::Maglev { table_size: 65_537 },
    ] {
        let cluster = cluster(policy.clone(), assignment(&addresses(5)));
        let mut turns = Turns::default();
        let mut attempt = Attempt::default();
        attempt.hash = Some(0x1234_5678_9abc_def0);
        let first = pick(&cluster, &mut turns, &attempt).unwrap();
        for _ in 0..10 {
            assert_eq!(pick(&cluster, &mut turns, &attempt).unwrap(), first, "{policy:?}");
        }
        attempt.redraws = 20;
        attempt.avoid(&cluster.hosts().hosts[first].endpoint);
        assert_ne!(pick(&cluster, &mut turns, &attempt).unwrap(), first, "{policy:?}");
    }
}

#[test]
fn health_decides_who_is_asked() {
    use Health::{Down, Draining, Serving, Stale, Warning};
    for (health, want) in [
        (vec![Serving, Warning, Serving, Down], vec![true, true, true, false]),
        (vec![Serving, Serving, Draining], vec![true, true, false]),
        // 66 % × 1.4 = 92 %: the stale one takes the rest.
        (vec![Serving, Serving, Stale], vec![true, true, true]),
        (vec![Serving, Serving, Serving, Stale], vec![true, true, true, false]),
        (vec![Stale, Stale, Down], vec![true, true, false]),
        // Under half are usable: panic, everybody is asked.
        (vec![Serving, Down, Down], vec![true, true, true]),
        (vec![Down, Draining], vec![true, true]),
    ] {
        let mut endpoints = assignment(&addresses(health.len()));
        for (endpoint, health) in endpoints.localities[0].endpoints.iter_mut().zip(&health) {
            endpoint.health = *health;
        }
        let cluster = cluster(LoadBalancing::Random, endpoints);
        let asked: Vec<bool> = tally(&cluster, 2000).into_iter().map(|count| count > 0).collect();
        assert_eq!(asked, want, "{health:?}");
        let panicked = cluster.state.stats.lb_healthy_panic.load(Relaxed) > 0;
        assert_eq!(panicked, health.contains(&Down) && want.iter().all(|&asked| asked), "{health:?}");
    }
}

#[test]
fn nobody_to_ask_is_said() {
    let empty = cluster(LoadBalancing::Ewma, assignment(&[]));
    assert_eq!(pick(&empty, &mut Turns::default(), &Attempt::default()), Err(Cause::NoHealthyUpstream));
    let mut dropping = assignment(&addresses(1));
    dropping.drops =
        vec![("all".to_owned(), pillion_model::endpoint::Fraction { numerator: 100, denominator: 100 })];
    let dropping = cluster(LoadBalancing::Ewma, dropping);
    assert_eq!(pick(&dropping, &mut Turns::default(), &Attempt::default()), Err(Cause::Dropped));
}

#[test]
fn localities_share_by_weight_and_availability() {
    fastrand::seed(7);
    let locality = |zone: &str, weight: u32, from: usize, healths: &[Health]| LocalityEndpoints {
        locality: Locality { zone: zone.to_owned(), ..Locality::default() },
        weight: Some(weight),
        priority: 0,
        endpoints: healths
            .iter()
            .enumerate()
            .map(|(at, &health)| {
                let mut endpoint = endpoint(address(from + at));
                endpoint.health = health;
                endpoint
            })
            .collect(),
    };
    let (up, down) = (Health::Serving, Health::Down);
    let mut endpoints = assignment(&[]);
    endpoints.localities =
        vec![locality("a", 1, 0, &[up, up]), locality("b", 2, 2, &[up, down]), locality("c", 0, 4, &[up])];
    // b: half available, 70 % of its weight 2. a: 100 %, so 100 to 140.
    let counts = tally(&cluster(LoadBalancing::RoundRobin, endpoints), 2400);
    assert!((counts[0] + counts[1]).abs_diff(1000) < 120, "{counts:?}");
    assert!(counts[2].abs_diff(1400) < 120, "{counts:?}");
    assert_eq!((counts[3], counts[4]), (0, 0));
}
