//! How load is shared among priorities, with Envoy's integer arithmetic.

/// Endpoints of one priority, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All.
    pub(crate) total: usize,
    /// Those that take traffic.
    pub(crate) healthy: usize,
    /// Those used only when the healthy ones do not suffice.
    pub(crate) degraded: usize,
}

/// Which endpoints of a priority are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Healthy,
    Degraded,
    /// Panic: all, whatever their health.
    All,
}

/// Percent of the load per priority; the two lists sum up to 100.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    pub(crate) healthy: Vec<u32>,
    pub(crate) degraded: Vec<u32>,
    pub(crate) panic: Vec<bool>,
}

impl Loads {
    /// Shares 100 percent among `levels`. `overprovisioning` in percent, usually 140.
    pub(crate) fn share(levels: &[Counts], overprovisioning: u32, panic_threshold: u32) -> Self {
        let available = |count: fn(&Counts) -> usize| -> Vec<u32> {
            levels.iter().map(|level| percent(count(level), level.total, overprovisioning).min(100)).collect()
        };
        let healthy = available(|level| level.healthy);
        let degraded = available(|level| level.degraded);
        let normalized = healthy.iter().chain(&degraded).sum::<u32>().min(100);
        let mut loads = Self {
            healthy: vec![0; levels.len()],
            degraded: vec![0; levels.len()],
            panic: vec![false; levels.len()],
        };
        if levels.is_empty() {
            return loads;
        }
        if normalized == 0 {
            loads.healthy[0] = 100;
        } else {
            loads.distribute(&healthy, &degraded, normalized);
        }
        for (panic, level) in loads.panic.iter_mut().zip(levels) {
            *panic = normalized < 100 && level.is_in_panic(panic_threshold);
        }
        if loads.panic.iter().all(|&panic| panic) {
            loads.share_by_size(levels);
        }
        loads
    }

    fn distribute(&mut self, healthy: &[u32], degraded: &[u32], normalized: u32) {
        let (first_healthy, left) = fill(&mut self.healthy, healthy, 100, normalized);
        let (first_degraded, left) = fill(&mut self.degraded, degraded, left, normalized);
        // What rounding left over.
        match (first_healthy, first_degraded) {
            (Some(first), _) => self.healthy[first] += left,
            (None, Some(first)) => self.degraded[first] += left,
            (None, None) => {}
        }
    }

    /// Every priority is in panic: by number of endpoints.
    fn share_by_size(&mut self, levels: &[Counts]) {
        let total: usize = levels.iter().map(|level| level.total).sum();
        let Some(first) = levels.iter().position(|level| level.total > 0) else { return };
        for (load, level) in self.healthy.iter_mut().zip(levels) {
            *load = percent(level.total, total, 100);
        }
        self.degraded.fill(0);
        self.healthy[first] += 100 - self.healthy.iter().sum::<u32>();
    }

    /// The priority and its endpoints for a draw.
    pub(crate) fn choose(&self, draw: u64) -> (usize, Source) {
        let percentage = u32::try_from(draw % 100).unwrap_or(0) + 1;
        let mut sum = 0;
        let tiers = [(&self.healthy, Source::Healthy), (&self.degraded, Source::Degraded)];
        for (loads, source) in tiers {
            for (level, load) in loads.iter().enumerate() {
                sum += load;
                if percentage <= sum {
                    return (level, if self.panic[level] { Source::All } else { source });
                }
            }
        }
        (0, Source::Healthy)
    }
}

impl Counts {
    fn is_in_panic(self, threshold: u32) -> bool {
        if self.total == 0 {
            return threshold > 0;
        }
        ((self.healthy + self.degraded) * 100) < threshold.min(100) as usize * self.total
    }
}

fn percent(part: usize, of: usize, factor: u32) -> u32 {
    let percent = (part * factor as usize).checked_div(of).unwrap_or(0);
    u32::try_from(percent).unwrap_or(u32::MAX)
}

/// Fills priorities in order until `left` is used up: the first available one, and what is left.
fn fill(loads: &mut [u32], available: &[u32], mut left: u32, normalized: u32) -> (Option<usize>, u32) {
    for (load, available) in loads.iter_mut().zip(available) {
        *load = (available * 100 / normalized).min(left);
        left -= *load;
    }
    (available.iter().position(|&available| available > 0), left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(total: usize, healthy: usize, degraded: usize) -> Counts {
        Counts { total, healthy, degraded }
    }

    #[test]
    fn load_follows_health_with_overprovisioning() {
        for (levels, healthy, degraded, panic) in [
            (vec![level(100, 100, 0), level(100, 5, 0)], vec![100, 0], vec![0, 0], vec![false, false]),
            (vec![level(100, 71, 0), level(100, 100, 0)], vec![99, 1], vec![0, 0], vec![false, false]),
            (vec![level(10, 5, 0), level(10, 10, 0)], vec![70, 30], vec![0, 0], vec![false, false]),
            (vec![level(4, 1, 0), level(4, 1, 0)], vec![50, 50], vec![0, 0], vec![true, true]),
            (vec![level(10, 0, 0), level(10, 10, 0)], vec![0, 100], vec![0, 0], vec![false, false]),
            // Nobody is healthy: all endpoints, by number.
            (vec![level(3, 0, 0), level(1, 0, 0)], vec![75, 25], vec![0, 0], vec![true, true]),
            // Degraded ones take what the healthy ones cannot.
            (vec![level(10, 5, 5)], vec![70], vec![30], vec![false]),
            (vec![level(2, 0, 2)], vec![0], vec![100], vec![false]),
            // One endpoint of three: 46 of 100, scaled up, and in panic.
            (vec![level(3, 1, 0)], vec![100], vec![0], vec![true]),
            (vec![level(0, 0, 0), level(2, 2, 0)], vec![0, 100], vec![0, 0], vec![false, false]),
        ] {
            let loads = Loads::share(&levels, 140, 50);
            assert_eq!(loads, Loads { healthy, degraded, panic }, "{levels:?}");
        }
    }

    #[test]
    fn without_a_threshold_there_is_no_panic() {
        let loads = Loads::share(&[level(2, 0, 0), level(2, 0, 0)], 140, 0);
        assert_eq!(loads, Loads { healthy: vec![100, 0], degraded: vec![0, 0], panic: vec![false, false] });
        assert_eq!(loads.choose(99), (0, Source::Healthy));
    }

    #[test]
    fn draws_fall_into_shares() {
        let loads = Loads { healthy: vec![70, 10], degraded: vec![0, 20], panic: vec![false, true] };
        for (draw, want) in [
            (0, (0, Source::Healthy)),
            (69, (0, Source::Healthy)),
            (70, (1, Source::All)),
            (179, (1, Source::All)),
            (80, (1, Source::All)),
        ] {
            assert_eq!(loads.choose(draw), want, "{draw}");
        }
    }

    proptest::proptest! {
        #[test]
        fn shares_sum_up_to_100(
            levels in proptest::collection::vec((0_usize..20, 0_usize..20, 0_usize..20), 1..5),
            threshold in 0_u32..=100,
        ) {
            let levels: Vec<Counts> =
                levels.into_iter().map(|(a, b, c)| level(a + b + c, a, b)).collect();
            let loads = Loads::share(&levels, 140, threshold);
            let sum: u32 = loads.healthy.iter().chain(&loads.degraded).sum();
            proptest::prop_assert_eq!(sum, 100);
        }
    }
}
