//! The brake on mass expiry.
//!
//! When many instances fall silent at once, the fault is likelier in the network or in the registry
//! than in all of them. So silence alone takes only a budget per minute, per service and overall.
//! A small failure always fits: the last instance of a service may leave, and so may one of two.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use pillion_model::name::ServiceName;

const WINDOW: Duration = Duration::from_secs(60);
const OF_SERVICE: Budget = Budget { at_least: 1, percent: 15 };
const OVERALL: Budget = Budget { at_least: 10, percent: 10 };

#[derive(Clone, Copy)]
struct Budget {
    at_least: usize,
    percent: usize,
}

/// What the brake has let go and would let go, of one service or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrakeState {
    /// Instances registered now.
    pub instances: usize,
    /// Those that left for silence in the last minute.
    pub departed: usize,
    /// Those that may leave for silence in one minute.
    pub budget: usize,
    /// Silent ones that are held.
    pub protected: usize,
}

/// Departures of the last minute, and whether another one fits.
#[derive(Debug, Default)]
pub struct Brake {
    services: HashMap<ServiceName, Departures>,
    overall: Departures,
}

#[derive(Debug, Default)]
struct Departures(VecDeque<Duration>);

impl Brake {
    /// Whether an instance of `service` may leave now for silence alone; counts it if so.
    /// `of_service` and `overall` are the numbers of instances registered now.
    pub fn admit(&mut self, service: &ServiceName, of_service: usize, overall: usize, now: Duration) -> bool {
        self.services.retain(|_, departures| departures.forget(now) > 0);
        self.overall.forget(now);
        let in_service = self.services.get(service).map_or(0, |departures| departures.0.len());
        if !OF_SERVICE.allows(in_service, of_service) || !OVERALL.allows(self.overall.0.len(), overall) {
            return false;
        }
        self.note(service, now);
        true
    }

    /// The state of one service, of which so many are there and so many held.
    pub(super) fn of_service(
        &self,
        service: &ServiceName,
        instances: usize,
        protected: usize,
        now: Duration,
    ) -> BrakeState {
        let departed = self.services.get(service).map_or(0, |departures| departures.recent(now));
        BrakeState { instances, departed, budget: OF_SERVICE.of(departed + instances), protected }
    }

    /// The state overall.
    pub(super) fn overall(&self, instances: usize, protected: usize, now: Duration) -> BrakeState {
        let departed = self.overall.recent(now);
        BrakeState { instances, departed, budget: OVERALL.of(departed + instances), protected }
    }

    /// Counts a departure that another registry admitted.
    pub fn note(&mut self, service: &ServiceName, now: Duration) {
        self.services.entry(service.clone()).or_default().0.push_back(now);
        self.overall.0.push_back(now);
    }
}

impl Budget {
    /// `recent` left within the window, `now` are still there: those alive at its start were both.
    fn allows(self, recent: usize, now: usize) -> bool {
        recent < self.of(recent + now)
    }

    /// How many of so many may leave.
    fn of(self, alive: usize) -> usize {
        self.at_least.max(alive * self.percent / 100)
    }
}

impl Departures {
    fn recent(&self, now: Duration) -> usize {
        self.0.iter().filter(|&&at| at + WINDOW > now).count()
    }

    fn forget(&mut self, now: Duration) -> usize {
        while self.0.front().is_some_and(|&at| at + WINDOW <= now) {
            self.0.pop_front();
        }
        self.0.len()
    }
}
