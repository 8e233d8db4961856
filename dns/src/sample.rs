//! Which instances to name, and in which order: by weight, and different every time.

/// Candidates by weight, prepared for many draws.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    weights: Vec<u32>,
    /// Sums of the weights up to and including each.
    sums: Vec<u64>,
    /// Whether all weigh the same, and something.
    even: bool,
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
        let even = weights.first().is_some_and(|first| *first > 0 && weights.iter().all(|one| one == first));
        Self { weights, sums, even }
    }

    /// How many candidates there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Draws up to `count` different candidates, heavier ones earlier and rather.
    ///
    /// The first one is drawn in proportion to the weights, the next one so among the rest, and so
    /// on. Costs `count` draws where there are many more candidates, else one draw for each.
    pub fn draw(&self, count: usize, random: &mut fastrand::Rng) -> Vec<usize> {
        let mut draw = Draw::default();
        draw.draw(self, count, random);
        draw.drawn
    }
}

/// Memory for drawing, used again and again.
#[derive(Debug, Default)]
pub struct Draw {
    drawn: Vec<usize>,
    keyed: Vec<(f64, usize)>,
    /// Whether a candidate has been drawn; all false between draws.
    seen: Vec<bool>,
}

impl Draw {
    /// Draws as [`Weights::draw`] does.
    pub fn draw(&mut self, from: &Weights, count: usize, random: &mut fastrand::Rng) -> &[usize] {
        self.drawn.clear();
        if from.len() > 2 * count {
            self.pick(from, count, random);
        }
        if self.drawn.len() < count.min(from.len()) {
            self.shuffle(from, count, random);
        }
        &self.drawn
    }

    /// Draws one after the other; gives up where a few candidates outweigh the others by far, for
    /// drawing again and again then meets only them.
    fn pick(&mut self, from: &Weights, count: usize, random: &mut fastrand::Rng) {
        let total = from.sums.last().copied().unwrap_or_default();
        if total == 0 {
            return;
        }
        self.seen.resize(self.seen.len().max(from.len()), false);
        for _ in 0..count * 4 {
            if self.drawn.len() == count {
                break;
            }
            let candidate = match from.even {
                true => random.usize(..from.len()),
                false => {
                    let at = random.u64(..total);
                    from.sums.partition_point(|sum| *sum <= at)
                }
            };
            if !std::mem::replace(&mut self.seen[candidate], true) {
                self.drawn.push(candidate);
            }
        }
        for candidate in &self.drawn {
            self.seen[*candidate] = false;
        }
    }

    fn shuffle(&mut self, from: &Weights, count: usize, random: &mut fastrand::Rng) {
        self.drawn.clear();
        if from.even {
            self.drawn.extend(0..from.len());
            for at in 0..count.min(from.len()) {
                self.drawn.swap(at, random.usize(at..from.len()));
            }
            return self.drawn.truncate(count);
        }
        // Efraimidis and Spirakis: order by `ln(u) / weight`, largest first.
        let key = |random: &mut fastrand::Rng, weight| (1.0 - random.f64()).ln() / f64::from(weight);
        let candidates = from.weights.iter().enumerate().filter(|(_, weight)| **weight > 0);
        self.keyed.clear();
        self.keyed.extend(candidates.map(|(at, weight)| (key(random, *weight), at)));
        self.keyed.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        self.drawn.extend(self.keyed.iter().take(count).map(|(_, at)| *at));
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
