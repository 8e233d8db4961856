//! Earliest deadline first: weighted turns, smooth over any stretch (Envoy's `EdfScheduler`).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Turns among members, by place in their group. One per worker and group.
pub(crate) struct Edf {
    queue: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

struct Entry {
    deadline: f64,
    /// Among equal deadlines the one queued first.
    order: u64,
    member: u32,
}

impl Edf {
    /// All members at their first deadline, then `skip` turns taken, so that workers do not all
    /// start with the same member.
    pub(crate) fn new(members: u32, skip: u32, weight: impl Fn(u32) -> f64) -> Self {
        let mut edf = Self { queue: BinaryHeap::with_capacity(members as usize), now: 0.0, order: 0 };
        for member in 0..members {
            edf.add(member, weight(member));
        }
        for _ in 0..skip {
            edf.next(&weight);
        }
        edf
    }

    /// Whose turn it is. `weight` is asked for the member's next deadline.
    pub(crate) fn next(&mut self, weight: impl Fn(u32) -> f64) -> Option<u32> {
        let entry = self.queue.pop()?;
        self.now = entry.deadline;
        self.add(entry.member, weight(entry.member));
        Some(entry.member)
    }

    fn add(&mut self, member: u32, weight: f64) {
        let deadline = self.now + 1.0 / weight;
        self.queue.push(Entry { deadline, order: self.order, member });
        self.order += 1;
    }
}

impl Ord for Entry {
    /// Reversed: the heap gives its greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_weights() {
        let weights = [1.0, 2.0, 5.0];
        for skip in 0..8 {
            let mut edf = Edf::new(3, skip, |member| weights[member as usize]);
            let mut turns = [0; 3];
            for _ in 0..80 {
                turns[edf.next(|member| weights[member as usize]).unwrap() as usize] += 1;
            }
            for (turns, weight) in turns.into_iter().zip(weights) {
                assert!((f64::from(turns) - 10.0 * weight).abs() <= 1.0, "skip {skip}: {turns} for {weight}");
            }
        }
    }

    #[test]
    fn equal_weights_go_round() {
        let mut edf = Edf::new(3, 0, |_| 1.0);
        let turns: Vec<_> = (0..6).map(|_| edf.next(|_| 1.0).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }
}
