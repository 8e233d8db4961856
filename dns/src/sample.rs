//! Which instances to name, and in which order: by weight, and different every time.

/// Candidates by weight, prepared for many draws.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    weights: Vec<u32>,
    /// Sums of the weights up to and including each.
    sums: Vec<u64>,
}

impl Weights {
    /// Prepares draws among candidates of these weights; those of weight 0 are never drawn.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let weights: Vec<u32> = weights.into_iter().collect();
        let mut sum = 0;
        let sums = weights
            .iter()
            .map(|weight| {
                sum += u64::from(*weight);
                sum
            })
            .collect();
        Self { weights, sums }
    }

    /// Draws up to `count` different candidates, heavier ones earlier and rather.
    ///
    /// The first one is drawn in proportion to the weights, the next one so among the rest, and so
    /// on. Costs `count` draws where there are many more candidates, else one draw for each.
    pub fn draw(&self, count: usize, random: &mut fastrand::Rng) -> Vec<usize> {
        if self.weights.len() <= 2 * count {
            return self.shuffle(count, random);
        }
        let total = self.sums.last().copied().unwrap_or_default();
        if total == 0 {
            return Vec::new();
        }
        let mut drawn = Vec::with_capacity(count);
        let mut seen = std::collections::HashSet::with_capacity(count);
        for _ in 0..count * 4 {
            let at = random.u64(..total);
            let candidate = self.sums.partition_point(|sum| *sum <= at);
            if seen.insert(candidate) {
                drawn.push(candidate);
                if drawn.len() == count {
                    return drawn;
                }
            }
        }
        // A few candidates outweigh the others by far: drawing again and again meets only them.
        self.shuffle(count, random)
    }

    /// Efraimidis and Spirakis: order by `ln(u) / weight`, largest first.
    fn shuffle(&self, count: usize, random: &mut fastrand::Rng) -> Vec<usize> {
        let mut keyed: Vec<(f64, usize)> = self
            .weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0)
            .map(|(at, weight)| ((1.0 - random.f64()).ln() / f64::from(*weight), at))
            .collect();
        keyed.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        keyed.truncate(count);
        keyed.into_iter().map(|(_, at)| at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's chi-square of `counts` against shares in proportion to `weights`.
    fn chi_square(counts: &[u32], weights: &[u32]) -> f64 {
        let (drawn, total) = (f64::from(counts.iter().sum::<u32>()), f64::from(weights.iter().sum::<u32>()));
        let terms = counts.iter().zip(weights).map(|(count, weight)| {
            let expected = drawn * f64::from(*weight) / total;
            (f64::from(*count) - expected).powi(2) / expected
        });
        terms.sum()
    }

    #[test]
    fn the_first_is_drawn_in_proportion_to_weight() {
        let mut random = fastrand::Rng::with_seed(7);
        let few = vec![10, 20, 70];
        let many: Vec<u32> = (0..100).map(|at| 50 + at).collect();
        // Critical values at p = 0.001 for 2 and 99 degrees of freedom.
        for (weights, limit) in [(few, 13.8), (many, 148.2)] {
            let prepared = Weights::new(weights.iter().copied());
            let mut counts = vec![0; weights.len()];
            for _ in 0..50_000 {
                counts[prepared.draw(3, &mut random)[0]] += 1;
            }
            let found = chi_square(&counts, &weights);
            assert!(found < limit, "{} candidates: {found}", weights.len());
        }
    }

    #[test]
    fn nobody_is_drawn_twice_and_weight_zero_never() {
        let mut random = fastrand::Rng::with_seed(7);
        let lopsided: Vec<u32> = (0..1000).map(|at| if at == 0 { 65_535 } else { at % 2 }).collect();
        for (weights, count, want) in [
            (vec![1; 1000], 70, 70),
            (lopsided, 70, 70),
            (vec![1, 0, 1], 70, 2),
            (vec![0; 500], 70, 0),
            (vec![], 1, 0),
        ] {
            let prepared = Weights::new(weights.iter().copied());
            let drawn = prepared.draw(count, &mut random);
            let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
            assert_eq!((drawn.len(), distinct.len()), (want, want));
            assert!(drawn.iter().all(|at| weights[*at] > 0));
        }
    }
}
