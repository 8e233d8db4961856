use std::time::Duration;

use pillion_model::health::Lease as State;
use pillion_model::name::{InstanceId, ServiceName};

use super::*;

const S: Duration = Duration::from_secs(1);

struct Sim {
    leases: Leases,
    now: Duration,
    /// (seconds, service/id, outcome)
    log: Vec<(u64, String, Outcome)>,
}

impl Sim {
    fn new() -> Self {
        Self { leases: Leases::default(), now: Duration::ZERO, log: Vec::new() }
    }

    fn add(&self, service: &str, count: usize) {
        self.add_at(service, count, TTL_DEFAULT, self.now);
    }

    fn add_at(&self, service: &str, count: usize, ttl: Duration, heard: Duration) {
        for n in 0..count {
            self.leases.insert(&name(service), &id(n), ttl, State::Heard, heard);
        }
    }

    fn beat(&self, service: &str, ids: impl IntoIterator<Item = usize>) {
        for n in ids {
            if let Some(lease) = self.leases.find(&name(service), &id(n)) {
                lease.beat(self.now);
            }
        }
    }

    /// Lets time pass in steps of the judge, committing what it says.
    fn run(&mut self, time: Duration, mut each: impl FnMut(&Self)) {
        let end = self.now + time;
        while self.now < end {
            self.now += JUDGE_EVERY;
            each(self);
            self.judge();
        }
    }

    fn judge(&mut self) {
        for Verdict { lease, outcome } in self.leases.judge(self.now) {
            match outcome {
                Outcome::Becomes(state) => {
                    self.leases.insert(lease.service(), lease.id(), lease.ttl(), state, self.now);
                }
                Outcome::Expires => {
                    self.leases.remove(lease.service(), lease.id());
                }
            }
            self.log.push((
                self.now.as_secs(),
                format!("{}/{}", lease.service().service(), lease.id()),
                outcome,
            ));
        }
    }

    fn expired(&self) -> usize {
        self.log.iter().filter(|(.., outcome)| *outcome == Outcome::Expires).count()
    }
}

fn name(service: &str) -> ServiceName {
    ServiceName::new("shop", service).expect("valid")
}

fn id(n: usize) -> InstanceId {
    InstanceId::parse(&format!("i{n}")).expect("valid")
}

#[test]
fn an_instance_is_late_after_two_beats_and_leaves_after_three() {
    for (ttl, late, gone) in [(30, 20, 30), (6, 4, 6), (3600, 2400, 3600)] {
        let mut sim = Sim::new();
        sim.add_at("orders", 1, S * ttl, Duration::ZERO);
        sim.run(S * (ttl + 5), |_| {});
        assert_eq!(
            sim.log,
            [
                (late, "orders/i0".to_owned(), Outcome::Becomes(State::Late)),
                (gone, "orders/i0".to_owned(), Outcome::Expires),
            ]
        );
    }
}

#[test]
fn a_late_instance_that_is_heard_again_is_as_before() {
    let mut sim = Sim::new();
    sim.add("orders", 1);
    sim.run(S * 25, |_| {});
    sim.beat("orders", [0]);
    sim.run(S * 10, |_| {});
    let outcomes: Vec<_> = sim.log.iter().map(|(.., outcome)| *outcome).collect();
    assert_eq!(outcomes, [Outcome::Becomes(State::Late), Outcome::Becomes(State::Heard)]);
}

#[test]
fn one_silent_instance_leaves_a_service_of_any_size() {
    for size in [1, 2, 3, 6, 7, 100] {
        let mut sim = Sim::new();
        sim.add("orders", size);
        sim.run(S * 31, |sim| sim.beat("orders", 1..size));
        assert_eq!(sim.expired(), 1, "of {size}");
    }
}

#[test]
fn the_brake_holds_mass_silence_and_lets_go_when_beats_return() {
    let mut sim = Sim::new();
    sim.add("orders", 100);
    // 60 of 100 fall silent: 15 % of the service, and overall max(10, 10 %), may leave per minute.
    sim.run(S * 45, |sim| sim.beat("orders", 60..100));
    assert_eq!(sim.expired(), 10, "the overall budget is the smaller one");
    assert_eq!((sim.leases.len(), sim.leases.protected()), (90, 50));
    sim.beat("orders", 0..60);
    sim.run(S, |_| {});
    assert_eq!((sim.leases.len(), sim.leases.protected()), (90, 0));
}

#[test]
fn a_service_loses_at_most_its_share_per_minute() {
    let mut sim = Sim::new();
    sim.add("orders", 20);
    sim.add("web", 400);
    sim.run(S * 50, |sim| sim.beat("web", 0..400));
    assert_eq!(sim.expired(), 3, "15 % of 20");
    sim.run(S * 60, |sim| sim.beat("web", 0..400));
    assert_eq!(sim.expired(), 3 + 2, "15 % of 17");
}

#[test]
fn protection_ends_after_ten_minutes() {
    let mut sim = Sim::new();
    sim.add("orders", 100);
    sim.run(S * 620, |_| {});
    assert!(!sim.leases.is_empty(), "some are still protected");
    sim.run(S * 15, |_| {});
    assert!(sim.leases.is_empty());
}

#[test]
fn time_slept_through_expires_nobody() {
    let mut sim = Sim::new();
    sim.add("orders", 50);
    sim.run(S * 9, |_| {});
    sim.now += S * 120; // SIGSTOP, SIGCONT
    sim.run(S * 5, |_| {});
    sim.beat("orders", 0..50);
    sim.run(S * 15, |_| {});
    assert_eq!(sim.log, []);
}

#[test]
fn after_a_start_nobody_expires_before_the_window_and_a_whole_lease() {
    let mut sim = Sim::new();
    sim.now = S;
    for service in ["orders", "web"] {
        sim.leases.adopt(&name(service), &id(0), TTL_DEFAULT, State::Late, sim.now + RECONNECT_WINDOW);
    }
    sim.run(RECONNECT_WINDOW + TTL_DEFAULT - S, |sim| sim.beat("web", [0]));
    let better = (1, "web/i0".to_owned(), Outcome::Becomes(State::Heard));
    assert_eq!(sim.log, [better], "and who is not heard stays late");
    sim.log.clear();
    sim.run(S * 2, |sim| sim.beat("web", [0]));
    assert_eq!(sim.log, [(61, "orders/i0".to_owned(), Outcome::Expires)]);
}

#[test]
fn a_beat_is_noted_however_late_the_judge_is() {
    let sim = Sim::new();
    sim.add("orders", 1);
    let lease = sim.leases.find(&name("orders"), &id(0)).expect("registered");
    lease.beat(S * 20);
    lease.beat(S * 10); // out of order
    assert_eq!(lease.silence(S * 21), S);
}

#[test]
fn who_is_well_is_looked_at_only_when_it_may_be_late() {
    let mut sim = Sim::new();
    sim.add("orders", 10);
    sim.add_at("forever", 1, TTL_NEVER, Duration::ZERO);
    let mut looks = 0;
    while sim.now < S * 300 {
        sim.now += JUDGE_EVERY;
        sim.beat("orders", 0..10);
        looks += sim.leases.due(sim.now);
        sim.judge();
    }
    assert_eq!(sim.log, []);
    assert!((100..300).contains(&looks), "11 leases, looked at every 20 to 30 s: {looks}");
}

#[test]
fn a_shorter_lease_counts_at_once() {
    let mut sim = Sim::new();
    sim.add_at("orders", 1, S * 3600, Duration::ZERO);
    sim.run(S * 2, |_| {});
    sim.add_at("orders", 1, S * 6, Duration::ZERO);
    sim.run(S * 5, |_| {});
    assert_eq!(
        sim.log,
        [
            (4, "orders/i0".to_owned(), Outcome::Becomes(State::Late)),
            (6, "orders/i0".to_owned(), Outcome::Expires),
        ]
    );
}
