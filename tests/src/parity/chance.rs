//! Whether two counts of random choices may come from the same distribution.

use std::collections::{BTreeMap, BTreeSet};

/// The chi-square statistic that chance exceeds once in ten thousand times, by degrees of freedom
/// (Wilson and Hilferty's approximation).
fn critical(degrees: usize) -> f64 {
    const Z: f64 = 3.719; // of the normal distribution, for 1 in 10,000
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let k = degrees as f64;
    let spread = 2.0 / (9.0 * k);
    k * (1.0 - spread + Z * spread.sqrt()).powi(3)
}

/// Whether they may; two samples, each outcome by its count.
pub(crate) fn same(a: &BTreeMap<String, u32>, b: &BTreeMap<String, u32>) -> bool {
    let outcomes: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let count = |of: &BTreeMap<String, u32>, outcome| f64::from(of.get(outcome).copied().unwrap_or_default());
    let total = |of: &BTreeMap<String, u32>| of.values().copied().map(f64::from).sum::<f64>();
    let (all_a, all_b) = (total(a), total(b));
    if outcomes.len() < 2 || all_a == 0.0 || all_b == 0.0 {
        return a.keys().eq(b.keys());
    }
    let statistic: f64 = outcomes
        .iter()
        .map(|&outcome| {
            let (in_a, in_b) = (count(a, outcome), count(b, outcome));
            let weighed = (all_b / all_a).sqrt() * in_a - (all_a / all_b).sqrt() * in_b;
            weighed * weighed / (in_a + in_b)
        })
        .sum();
    statistic <= critical(outcomes.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_distribution_are_the_same() {
        let counts = |pairs: &[(&str, u32)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        for (a, b, want) in [
            (counts(&[("a", 500), ("b", 500)]), counts(&[("a", 520), ("b", 480)]), true),
            (counts(&[("a", 500), ("b", 500)]), counts(&[("a", 650), ("b", 350)]), false),
            (counts(&[("a", 10)]), counts(&[("a", 10)]), true),
            (counts(&[("a", 10)]), counts(&[("b", 10)]), false),
        ] {
            assert_eq!(same(&a, &b), want, "{a:?} {b:?}");
        }
    }
}
