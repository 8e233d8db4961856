//! Results in a row, with Envoy's rules.

use pillion_model::health_check::HealthCheck;

use super::ask::Found;

/// Counts the results of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Streak {
    asked: bool,
    passed: u32,
    failed: u32,
}

/// What a result changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing: it is as it was.
    No,
    /// It is otherwise than it was, but not often enough in a row.
    Pending,
    /// The endpoint changes sides.
    Now,
}

impl Streak {
    /// Counts one result of an endpoint that is `well` or not. The first one brings it in at once; an
    /// answer that says no takes it out at once.
    pub(super) fn count(&mut self, well: bool, found: &Found, check: &HealthCheck) -> Change {
        let first = !std::mem::replace(&mut self.asked, true);
        let passed = matches!(found, Found::Well);
        if passed {
            self.failed = 0;
        } else {
            self.passed = 0;
        }
        if passed == well {
            return Change::No;
        }
        let (count, needed) = match found {
            Found::Well if first => (&mut self.passed, 1),
            Found::Well => (&mut self.passed, check.healthy_threshold),
            Found::No(_) => (&mut self.failed, 1),
            Found::Failure(_) => (&mut self.failed, check.unhealthy_threshold),
        };
        *count += 1;
        if *count < needed {
            return Change::Pending;
        }
        *count = 0;
        Change::Now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pillion_model::health_check::{HealthChecker, Pace};

    use super::*;

    #[test]
    fn thresholds_decide_but_for_the_first_result_and_a_clear_no() {
        let time = Duration::from_secs(1);
        let check = HealthCheck {
            checker: HealthChecker::Tcp { send: Vec::new(), receive: Vec::new() },
            timeout: time,
            reuse_connection: true,
            unhealthy_threshold: 2,
            healthy_threshold: 2,
            pace: Pace {
                interval: time,
                unhealthy: time,
                unhealthy_edge: time,
                healthy_edge: time,
                no_traffic: time,
                no_traffic_healthy: time,
                initial_jitter: time,
                jitter: time,
                jitter_percent: 0,
            },
        };
        let (well, failure, no) = (Found::Well, Found::Failure(String::new()), Found::No(String::new()));
        let (mut streak, mut now) = (Streak::default(), false);
        for (found, want) in [
            (&well, Change::Now),
            (&failure, Change::Pending),
            (&well, Change::No),
            (&failure, Change::Pending),
            (&failure, Change::Now),
            (&failure, Change::No),
            (&well, Change::Pending),
            (&failure, Change::No),
            (&well, Change::Pending),
            (&well, Change::Now),
            (&no, Change::Now),
        ] {
            let change = streak.count(now, found, &check);
            assert_eq!(change, want);
            now ^= change == Change::Now;
        }
        // An endpoint that fails from the beginning stays out until it passed often enough.
        let mut streak = Streak::default();
        for (found, want) in [(&failure, Change::No), (&well, Change::Pending), (&well, Change::Now)] {
            assert_eq!(streak.count(false, found, &check), want);
        }
    }
}
