//! Instances: what they want, and what they say to registries.

use std::time::Duration;

use pillion_model::health::Reported;
use pillion_model::name::{InstanceId, ServiceName};
use tokio::time::Instant;

use super::faults::{Faults, Network};
use super::registry::{Answer, Registries};

/// How long registrations live unrenewed.
const TTL_SECONDS: u64 = 15;
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// What an instance says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Register,
    Beat(Option<Reported>),
    Deregister,
}

/// One message to one registry.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) actor: usize,
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) generation: u64,
    pub(super) say: Say,
    pub(super) to: usize,
    /// How long it takes is decided.
    pub(super) delayed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Be there.
    Up,
    /// Be gone, and know that it is known.
    Leaving,
    /// Left, or was killed.
    Away,
}

/// One instance over all its starts.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) generation: u64,
    pub(super) wish: Wish,
    registered: bool,
    home: usize,
    next: Instant,
}

#[derive(Debug)]
pub(super) struct Actors(pub(super) Vec<Actor>);

impl Actors {
    pub(super) fn new(random: &mut fastrand::Rng) -> Self {
        let services = [("orders", 7), ("stock", 3), ("web", 1)];
        let actors = services.iter().flat_map(|&(service, count)| {
            (0..count).map(move |n| (ServiceName::new("shop", service).expect("valid"), n))
        });
        let actors = actors.map(|(service, n)| Actor {
            id: InstanceId::parse(&format!("{}-{n}", service.service())).expect("valid"),
            service,
            generation: 1,
            wish: Wish::Up,
            registered: false,
            home: random.usize(..8),
            next: Instant::now(),
        });
        Self(actors.collect())
    }

    /// One step of everybody's life among faults.
    pub(super) fn live(
        &mut self,
        faults: &Faults,
        network: &mut Network,
        registries: &Registries,
        random: &mut fastrand::Rng,
    ) {
        for actor in &mut self.0 {
            if random.f64() >= faults.restless {
                continue;
            }
            match (actor.wish, random.u8(..4)) {
                (Wish::Up, 0) => actor.wish = Wish::Leaving,
                (Wish::Up, 1) => actor.wish = Wish::Away, // killed
                (Wish::Up, _) => {
                    let reported = [Reported::Ready, Reported::NotReady, Reported::Draining];
                    let say = Say::Beat(Some(reported[random.usize(..3)]));
                    network.send(actor.message(say, registries));
                }
                (Wish::Away, 0 | 1) => {
                    actor.generation += 1;
                    (actor.wish, actor.registered) = (Wish::Up, false);
                    actor.home = random.usize(..8);
                }
                _ => {}
            }
        }
        self.beat(network, registries, random);
    }

    /// Everybody says what is due.
    pub(super) fn beat(
        &mut self,
        network: &mut Network,
        registries: &Registries,
        random: &mut fastrand::Rng,
    ) {
        let now = Instant::now();
        for actor in self.0.iter_mut().filter(|actor| actor.next <= now) {
            if !registries.is_up(actor.home) {
                // The connection broke: another registry, if one answers.
                actor.home = registries.any_awake(random).unwrap_or(actor.home);
                actor.registered = false;
                continue;
            }
            let say = match (actor.wish, actor.registered) {
                (Wish::Up, false) => Say::Register,
                (Wish::Up, true) => Say::Beat(None),
                (Wish::Leaving, _) => Say::Deregister,
                (Wish::Away, _) => continue,
            };
            let hurried = if say == Say::Beat(None) { BEAT_EVERY } else { Duration::from_secs(1) };
            actor.next = now + hurried;
            network.send(actor.message(say, registries));
        }
    }

    pub(super) fn answered(&mut self, message: &Message, answer: Answer) {
        let actor = &mut self.0[message.actor];
        if message.generation != actor.generation {
            return;
        }
        match (message.say, answer) {
            (Say::Register, Answer::Done) => actor.registered = true,
            (Say::Beat(_), Answer::Unknown) => actor.registered = false,
            (Say::Deregister, Answer::Done | Answer::Unknown | Answer::Older)
                if actor.wish == Wish::Leaving =>
            {
                actor.wish = Wish::Away;
            }
            _ => {}
        }
    }
}

impl Actor {
    fn message(&self, say: Say, registries: &Registries) -> Message {
        Message {
            actor: self.index(),
            service: self.service.clone(),
            id: self.id.clone(),
            generation: self.generation,
            say,
            to: registries.index(self.home),
            delayed: false,
        }
    }

    fn index(&self) -> usize {
        let n: usize = self.id.as_str().rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        n + match self.service.service() {
            "orders" => 0,
            "stock" => 7,
            _ => 10,
        }
    }
}

/// A registration as it travels.
pub(super) fn body(generation: u64) -> serde_json::Value {
    let ttl = format!("{TTL_SECONDS}s");
    serde_json::json!({"address": "10.0.0.5", "port": 8080, "generation": generation, "ttl": ttl})
}
