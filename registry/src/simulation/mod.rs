//! The catalog, its leases and its watch under faults, on a test clock, from a seed.
//!
//! Several registries share one store. Instances register, beat, report, leave, crash and start
//! again through a network that loses, delays, doubles and reorders messages; registries are paused
//! and restarted, answers of the store are lost, the clock jumps. [`history`] checks what must hold
//! at every moment and what must hold when the faults are over.
//!
//! `PILLION_SIMULATION_SEED` runs one seed, `PILLION_SIMULATION_SEEDS` that many.

use std::time::Duration;

use tokio::time::Instant;

mod actor;
mod faults;
mod history;
mod registry;
mod watcher;

use actor::Actors;
use faults::{Faults, Network};
use history::History;
use registry::Registries;
use watcher::Watchers;

/// Time between two looks at everything; less than what counts as asleep.
const STEP: Duration = Duration::from_millis(250);
/// How long there are faults.
const STORM: Duration = Duration::from_secs(240);
/// How long the brake may hold the departed, and then some.
const CALM: Duration = Duration::from_secs(16 * 60);

/// Runs one seed, and tells what happened in short: it must be the same each time.
fn run(seed: u64, faults: Faults) -> String {
    // Shown by the test harness when an assertion fails.
    println!("seed {seed}: PILLION_SIMULATION_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut simulation = Simulation::new(seed, faults).await;
        simulation.storm().await;
        simulation.calm().await;
        simulation.history.settled(&simulation.actors, &simulation.registries, &simulation.watchers);
        format!("{} at {}", simulation.history.story(), simulation.registries.position())
    })
}

struct Simulation {
    random: fastrand::Rng,
    faults: Faults,
    network: Network,
    registries: Registries,
    actors: Actors,
    watchers: Watchers,
    history: History,
}

impl Simulation {
    async fn new(seed: u64, faults: Faults) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let registries = Registries::open(&faults, random.fork()).await;
        Self {
            network: Network::default(),
            actors: Actors::new(&mut random),
            watchers: Watchers::new(6),
            history: History::new(faults),
            registries,
            faults,
            random,
        }
    }

    async fn storm(&mut self) {
        let end = Instant::now() + STORM;
        while Instant::now() < end {
            self.registries.disturb(&self.faults, &mut self.random).await;
            self.actors.live(&self.faults, &mut self.network, &self.registries, &mut self.random);
            let step = match self.random.f64() < self.faults.jump {
                true => Duration::from_secs(self.random.u64(2..120)),
                false => STEP,
            };
            self.step(step).await;
        }
    }

    /// No more faults: who is there beats, who left or crashed stays away.
    async fn calm(&mut self) {
        self.registries.heal().await;
        self.faults = Faults { lost: 0.0, doubled: 0.0, late: Duration::ZERO, ..self.faults };
        let end = Instant::now() + CALM;
        while Instant::now() < end {
            self.actors.beat(&mut self.network, &self.registries, &mut self.random);
            self.step(Duration::from_millis(500)).await;
        }
    }

    async fn step(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        for message in self.network.due(&self.faults, &mut self.random) {
            let answer = self.registries.deliver(&message).await;
            self.history.answered(&message, &answer);
            self.actors.answered(&message, answer);
        }
        self.registries.keep().await;
        self.watchers.read(&self.registries, &self.faults, &mut self.random, &mut self.history);
        self.history.look(&self.registries);
    }
}

fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("PILLION_SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("PILLION_SIMULATION_SEEDS").unwrap_or(count)).collect(),
    }
}

#[test]
fn watchers_converge_to_what_is_registered_and_nothing_acknowledged_returns() {
    for seed in seeds(12) {
        run(seed, Faults { registries: 1 + (seed % 3) as usize, ..Faults::all() });
    }
}

#[test]
fn a_seed_tells_one_story() {
    let faults = Faults { registries: 3, ..Faults::all() };
    assert_eq!(run(5, faults), run(5, faults));
}

#[test]
fn pauses_jumps_and_restarts_expire_nobody() {
    for seed in seeds(8) {
        run(seed, Faults { registries: 1 + (seed % 3) as usize, ..Faults::of_registries() });
    }
}
