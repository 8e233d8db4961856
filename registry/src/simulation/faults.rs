//! What goes wrong how often, and the network between instances and registries.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::actor::Message;

/// How often what goes wrong; chances are per step or per message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) registries: usize,
    /// A message is lost.
    pub(super) lost: f64,
    /// A message arrives twice.
    pub(super) doubled: f64,
    /// A message takes up to so long.
    pub(super) late: Duration,
    /// An instance crashes, leaves, starts again or changes its mind.
    pub(super) restless: f64,
    /// A registry is paused for a while.
    pub(super) pause: f64,
    /// A registry is restarted.
    pub(super) restart: f64,
    /// The clock jumps: everybody sleeps.
    pub(super) jump: f64,
    /// The store's answer to a commit is lost.
    pub(super) lost_commit: f64,
    /// A watcher reconnects elsewhere.
    pub(super) reconnect: f64,
}

impl Faults {
    pub(super) fn all() -> Self {
        Self {
            registries: 1,
            lost: 0.1,
            doubled: 0.1,
            late: Duration::from_secs(6),
            restless: 0.02,
            pause: 0.004,
            restart: 0.004,
            jump: 0.002,
            lost_commit: 0.02,
            reconnect: 0.01,
        }
    }

    /// The network is good and instances are well: whoever expires does so wrongly.
    pub(super) fn of_registries() -> Self {
        Self { lost: 0.0, late: Duration::ZERO, restless: 0.0, lost_commit: 0.0, ..Self::all() }
    }
}

/// Messages on their way.
#[derive(Debug, Default)]
pub(super) struct Network {
    on_the_way: VecDeque<(Instant, Message)>,
}

impl Network {
    /// Sends a message; when it arrives, and how often, is seen in [`Network::due`].
    pub(super) fn send(&mut self, message: Message) {
        self.on_the_way.push_back((Instant::now(), message));
    }

    /// What arrives now.
    pub(super) fn due(&mut self, faults: &Faults, random: &mut fastrand::Rng) -> Vec<Message> {
        let (now, mut due) = (Instant::now(), Vec::new());
        let mut later = VecDeque::new();
        for (at, mut message) in self.on_the_way.drain(..) {
            if !message.delayed {
                message.delayed = true;
                if random.f64() < faults.lost {
                    continue;
                }
                let late = |random: &mut fastrand::Rng| faults.late.mul_f64(random.f64().powi(3));
                if random.f64() < faults.doubled {
                    later.push_back((now + late(random), message.clone()));
                }
                later.push_back((now + late(random), message));
            } else {
                later.push_back((at, message));
            }
        }
        for (at, message) in later {
            if at <= now {
                due.push(message);
            } else {
                self.on_the_way.push_back((at, message));
            }
        }
        random.shuffle(&mut due);
        due
    }
}
