//! Flap damping: an instance that comes and goes must be steady before it counts again.
//!
//! Each departure adds to a penalty that decays. Above a threshold what gets worse is told at once,
//! what gets better is held back until it has been steady for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_model::health::{Health, HealthInputs, Probe, Reported};
use pillion_model::name::{InstanceId, ServiceName};

/// What one departure adds.
const DEPARTURE: f64 = 1000.0;
/// Above it an instance is held back: reached by the third departure in quick succession.
const HELD_ABOVE: f64 = 2500.0;
/// The penalty does not grow beyond it.
const PENALTY_MAX: f64 = 6000.0;
const HALF_LIFE: Duration = Duration::from_secs(60);
/// How long an instance that is held back has to be steady.
pub const HOLD: Duration = Duration::from_secs(30);
/// Penalties below it are forgotten.
const FORGOTTEN_BELOW: f64 = 50.0;

/// An instance that is held back.
#[derive(Clone, Debug, PartialEq)]
pub struct Damped {
    /// Its service.
    pub service: ServiceName,
    /// Its id.
    pub id: InstanceId,
    /// 1000 for each departure, halved every minute.
    pub penalty: u64,
    /// How long it has been steady; it counts again after [`HOLD`].
    pub steady: Duration,
}

/// Who flaps.
#[derive(Debug, Default)]
pub struct Damping(Mutex<HashMap<(ServiceName, InstanceId), Flaps>>);

#[derive(Debug, Default)]
struct Flaps {
    penalty: f64,
    /// When the penalty was that.
    at: Duration,
    /// What it says of itself, and since when, while it is held back.
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    reported: Reported,
    probe: Probe,
    since: Duration,
}

impl Damping {
    /// What an instance last said of itself while it is held back.
    pub fn said(&self, service: &ServiceName, id: &InstanceId) -> Option<(Reported, Probe)> {
        let held = self.lock().get(&(service.clone(), id.clone()))?.held?;
        Some((held.reported, held.probe))
    }

    /// The health to show of an instance that is shown as `have` and would be `wished`.
    pub fn judge(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        have: HealthInputs,
        wished: HealthInputs,
        now: Duration,
    ) -> HealthInputs {
        let mut flaps = self.lock();
        match (is_well(have), is_well(wished)) {
            (true, true) => wished,
            (true, false) => {
                flaps.entry((service.clone(), id.clone())).or_default().depart(now);
                wished
            }
            (false, false) => {
                if let Some(flaps) = flaps.get_mut(&(service.clone(), id.clone()))
                    && flaps.held.is_some()
                {
                    flaps.depart(now);
                }
                wished
            }
            (false, true) => {
                let flaps = flaps.get_mut(&(service.clone(), id.clone()));
                match flaps.is_some_and(|flaps| flaps.holds(wished, now)) {
                    true => HealthInputs { reported: have.reported, probe: have.probe, ..wished },
                    false => wished,
                }
            }
        }
    }

    /// Notes that an instance left.
    pub fn depart(&self, service: &ServiceName, id: &InstanceId, now: Duration) {
        self.lock().entry((service.clone(), id.clone())).or_default().depart(now);
    }

    /// Those that are held back.
    pub fn held(&self, now: Duration) -> Vec<Damped> {
        let flaps = self.lock();
        let held = flaps.iter().filter_map(|((service, id), flaps)| {
            let steady = now.saturating_sub(flaps.held?.since);
            let penalty = flaps.penalty(now) as u64;
            Some(Damped { service: service.clone(), id: id.clone(), penalty, steady })
        });
        let mut held: Vec<_> = held.collect();
        held.sort_by(|a, b| (&a.service, &a.id).cmp(&(&b.service, &b.id)));
        held
    }

    /// Forgets those that have been steady for long.
    pub fn forget(&self, now: Duration) {
        self.lock().retain(|_, flaps| flaps.held.is_some() || flaps.penalty(now) >= FORGOTTEN_BELOW);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ServiceName, InstanceId), Flaps>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flaps {
    fn penalty(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.penalty * 0.5f64.powf(age)
    }

    fn depart(&mut self, now: Duration) {
        self.penalty = (self.penalty(now) + DEPARTURE).min(PENALTY_MAX);
        self.at = now;
        self.held = None;
    }

    /// Whether the return of the instance is held back; from then on it has to be steady.
    fn holds(&mut self, wished: HealthInputs, now: Duration) -> bool {
        let since = match self.held {
            Some(held) => held.since,
            None if self.penalty(now) <= HELD_ABOVE => return false,
            None => now,
        };
        let steady = now.saturating_sub(since) >= HOLD;
        self.held = (!steady).then_some(Held { reported: wished.reported, probe: wished.probe, since });
        !steady
    }
}

fn is_well(health: HealthInputs) -> bool {
    matches!(Health::combine(health), Health::Serving | Health::Warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn orders() -> ServiceName {
        ServiceName::new("shop", "orders").expect("valid")
    }

    fn id() -> InstanceId {
        InstanceId::parse("orders-1").expect("valid")
    }

    fn health(reported: Reported) -> HealthInputs {
        HealthInputs { reported, ..HealthInputs::default() }
    }

    /// Says `reported` at `now` and returns whether that changed what is shown.
    fn say(damping: &Damping, shown: &mut HealthInputs, reported: Reported, now: Duration) -> bool {
        let next = damping.judge(&orders(), &id(), *shown, health(reported), now);
        let changed = next != *shown;
        *shown = next;
        changed
    }

    #[test]
    fn toggling_each_second_is_told_six_times_a_minute_at_most() {
        let (damping, mut shown) = (Damping::default(), health(Reported::Ready));
        let mut told = [0; 5];
        for second in 0..300 {
            let reported = if second % 2 == 0 { Reported::NotReady } else { Reported::Ready };
            told[second / 60] += usize::from(say(&damping, &mut shown, reported, S * second as u32));
        }
        assert_eq!(told, [5, 0, 0, 0, 0]);
        assert!(!is_well(shown), "what flaps is not relied upon");
    }

    #[test]
    fn whoever_is_steady_counts_again() {
        let (damping, mut shown) = (Damping::default(), health(Reported::Ready));
        for second in 0..6 {
            let reported = if second % 2 == 0 { Reported::NotReady } else { Reported::Ready };
            say(&damping, &mut shown, reported, S * second);
        }
        assert_eq!(damping.held(S * 10).len(), 1);
        assert_eq!(damping.said(&orders(), &id()), Some((Reported::Ready, Probe::Unknown)));
        assert!(!say(&damping, &mut shown, Reported::Ready, S * 34), "not yet");
        assert!(say(&damping, &mut shown, Reported::Ready, S * 35));
        assert!(is_well(shown) && damping.held(S * 35).is_empty());
        damping.forget(S * 600);
        assert!(damping.lock().is_empty());
    }

    #[test]
    fn a_rare_departure_is_not_held_against_anybody() {
        let (damping, mut shown) = (Damping::default(), health(Reported::Ready));
        for minute in 0..20 {
            assert!(say(&damping, &mut shown, Reported::NotReady, S * 60 * minute));
            assert!(say(&damping, &mut shown, Reported::Ready, S * (60 * minute + 1)), "minute {minute}");
        }
    }
}
