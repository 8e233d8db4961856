//! Consistent hashing with Envoy's arithmetic, so that a request meets the same endpoint whichever
//! of the two proxies it passes: a ring of points, and Maglev's table.

use xxhash_rust::xxh64::xxh64;

/// One endpoint: the text of its address, and its share of the whole.
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a str,
    /// All shares sum up to one.
    pub(crate) share: f64,
}

/// Hashes to members, by place in the list they were made from.
pub(crate) enum Table {
    /// Points in order of their hash.
    Ring(Box<[(u64, u32)]>),
    /// Slots; the number of them is a prime.
    Maglev(Box<[u32]>),
}

impl Table {
    /// A ring of at least `size_min` points in which the lightest endpoint has a whole number of
    /// points, or of `size_max` points if that is less.
    pub(crate) fn ring(entries: &[Entry<'_>], size_min: u64, size_max: u64) -> Self {
        let lightest = entries.iter().map(|entry| entry.share).fold(1.0, f64::min);
        let scale = ((lightest * size_min as f64).ceil() / lightest).min(size_max as f64);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut have, mut want) = (0.0, 0.0);
        let mut text = String::new();
        for (member, entry) in (0_u32..).zip(entries) {
            want += scale * entry.share;
            let mut replica = 0_u64;
            while have < want {
                text.clear();
                // Formatting into a buffer at configuration time.
                let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{}_{replica}", entry.key));
                points.push((xxh64(text.as_bytes(), 0), member));
                replica += 1;
                have += 1.0;
            }
        }
        points.sort_unstable_by_key(|&(hash, _)| hash);
        Self::Ring(points.into_boxed_slice())
    }

    /// Maglev's table (Eisenbud et al., NSDI 2016, section 3.4), weighted as Envoy does it.
    pub(crate) fn maglev(entries: &[Entry<'_>], size: u64) -> Self {
        struct Row {
            offset: u64,
            skip: u64,
            next: u64,
            share: f64,
            target: f64,
        }
        let heaviest = entries.iter().map(|entry| entry.share).fold(0.0, f64::max);
        let size = size.max(2);
        let mut rows: Vec<Row> = entries
            .iter()
            .map(|entry| Row {
                offset: xxh64(entry.key.as_bytes(), 0) % size,
                skip: xxh64(entry.key.as_bytes(), 1) % (size - 1) + 1,
                next: 0,
                share: entry.share,
                target: 0.0,
            })
            .collect();
        let mut slots = vec![u32::MAX; if rows.is_empty() { 0 } else { size as usize }];
        let (mut filled, mut round) = (0, 1.0);
        while filled < slots.len() {
            for (member, row) in (0_u32..).zip(&mut rows) {
                if filled == slots.len() {
                    break;
                }
                // An endpoint of a third of the heaviest one's share has its turn every third round.
                if round * row.share < row.target {
                    continue;
                }
                row.target += heaviest;
                let mut slot = ((row.offset + row.skip * row.next) % size) as usize;
                while slots[slot] != u32::MAX {
                    row.next += 1;
                    slot = ((row.offset + row.skip * row.next) % size) as usize;
                }
                slots[slot] = member;
                row.next += 1;
                filled += 1;
            }
            round += 1.0;
        }
        Self::Maglev(slots.into_boxed_slice())
    }

    /// The member for `hash`; `attempt` counts draws to avoid a member.
    pub(crate) fn find(&self, hash: u64, attempt: u32) -> Option<u32> {
        match self {
            Self::Ring(points) => {
                let first = points.partition_point(|&(point, _)| point < hash);
                let first = if first == points.len() { 0 } else { first };
                let at = (first + attempt as usize).checked_rem(points.len())?;
                points.get(at).map(|&(_, member)| member)
            }
            Self::Maglev(slots) => {
                // Most bits change, so that the next draw is far away.
                let hash = if attempt == 0 { hash } else { hash ^ (u64::MAX - u64::from(attempt) + 1) };
                let at = hash.checked_rem(slots.len() as u64)?;
                slots.get(at as usize).copied()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries<'a>(list: &[(&'a str, f64)]) -> Vec<Entry<'a>> {
        let sum: f64 = list.iter().map(|&(_, weight)| weight).sum();
        list.iter().map(|&(key, weight)| Entry { key, share: weight / sum }).collect()
    }

    fn count(table: &Table, members: usize) -> Vec<usize> {
        let list: Vec<u32> = match table {
            Table::Ring(points) => points.iter().map(|&(_, member)| member).collect(),
            Table::Maglev(slots) => slots.to_vec(),
        };
        (0..members).map(|member| list.iter().filter(|&&it| it as usize == member).count()).collect()
    }

    #[test]
    fn a_ring_gives_each_endpoint_points_by_weight() {
        let list = entries(&[("10.0.0.1:80", 1.0), ("10.0.0.2:80", 2.0), ("10.0.0.3:80", 1.0)]);
        let ring = Table::ring(&list, 1024, 8_388_608);
        assert_eq!(count(&ring, 3), [256, 512, 256]);
        // Three equal ones do not divide 1024: each gets the next whole number.
        let list = entries(&[("10.0.0.1:80", 1.0), ("10.0.0.2:80", 1.0), ("10.0.0.3:80", 1.0)]);
        assert_eq!(count(&Table::ring(&list, 1024, 8_388_608), 3), [342, 342, 342]);
        assert_eq!(count(&Table::ring(&list, 1024, 6), 3), [2, 2, 2]);
    }

    #[test]
    fn a_ring_finds_the_first_point_at_or_after_the_hash_and_wraps() {
        let list = entries(&[("10.0.0.1:80", 1.0), ("10.0.0.2:80", 1.0)]);
        let ring = Table::ring(&list, 4, 100);
        let Table::Ring(points) = &ring else { panic!("a ring") };
        assert_eq!(points.len(), 4);
        for key in ["10.0.0.1:80_0", "10.0.0.2:80_1"] {
            let hash = xxh64(key.as_bytes(), 0);
            let member = u32::from(key.starts_with("10.0.0.2"));
            assert_eq!(ring.find(hash, 0), Some(member), "{key}");
        }
        assert_eq!(ring.find(points[3].0 + 1, 0), Some(points[0].1));
        assert_eq!(ring.find(points[3].0, 1), Some(points[0].1));
        assert_eq!(ring.find(points[0].0 + 1, 0), Some(points[1].1));
    }

    #[test]
    fn maglev_fills_its_table_by_weight() {
        let list = entries(&[("10.0.0.1:80", 1.0), ("10.0.0.2:80", 1.0), ("10.0.0.3:80", 2.0)]);
        let counts = count(&Table::maglev(&list, 65_537), 3);
        for (count, want) in counts.iter().zip([16_384, 16_384, 32_769]) {
            assert!(count.abs_diff(want) <= 2, "{counts:?}");
        }
    }

    #[test]
    fn maglev_moves_few_keys_when_an_endpoint_leaves() {
        let three = entries(&[("10.0.0.1:80", 1.0), ("10.0.0.2:80", 1.0), ("10.0.0.3:80", 1.0)]);
        let two = entries(&[("10.0.0.1:80", 1.0), ("10.0.0.2:80", 1.0)]);
        let (before, after) = (Table::maglev(&three, 65_537), Table::maglev(&two, 65_537));
        let moved = (0..65_537).filter(|&hash| {
            let was = before.find(hash, 0);
            was != Some(2) && was != after.find(hash, 0)
        });
        // Of the 43 691 slots of the endpoints that stay.
        assert!(moved.count() < 5_000);
    }

    #[test]
    fn nothing_to_choose_from_gives_nothing() {
        assert_eq!(Table::ring(&[], 1024, 4096).find(7, 0), None);
        assert_eq!(Table::maglev(&[], 65_537).find(7, 0), None);
    }
}
