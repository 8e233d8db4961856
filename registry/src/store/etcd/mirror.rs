//! The copy of what is in etcd, and how it moves from one state to the next. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Key, Op, Position};
use crate::store::{Commit, Entry, Space};

/// Everything as of one revision.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) at: Position,
    pub(super) entries: BTreeMap<Key, Entry>,
}

/// What is there is not a continuation of what was: etcd was restored from a backup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten;

impl Mirror {
    pub(super) fn revision_of(&self, key: &Key) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.revision)
    }

    /// Whether `others` may be this mesh's, at another time: they have its certificate authority.
    pub(super) fn is_of_one_mesh_with(&self, others: &BTreeMap<Key, Entry>) -> bool {
        let mut ours = self.entries.iter().filter(|(key, _)| key.space == Space::Ca).peekable();
        ours.peek().is_none()
            || ours.any(|(key, entry)| others.get(key).is_some_and(|other| other.value == entry.value))
    }

    /// Takes in commits, in order; those it has are skipped. Returns the new ones.
    pub(super) fn apply(&mut self, commits: Vec<Commit>) -> Vec<Arc<Commit>> {
        let mut new = Vec::with_capacity(commits.len());
        let known = self.at.revision;
        for commit in commits.into_iter().filter(|commit| commit.revision > known) {
            let revision = commit.revision;
            for Op { key, value } in &commit.ops {
                match value {
                    Some(value) => {
                        self.entries.insert(key.clone(), Entry { revision, value: value.clone() });
                    }
                    None => drop(self.entries.remove(key)),
                }
            }
            self.at.revision = revision;
            new.push(Arc::new(commit));
        }
        new
    }

    /// The commits that lead to `now`, which is as of `revision`: one for each revision that wrote
    /// something that is still there, and the deletions with the last.
    pub(super) fn difference(
        &self,
        now: &BTreeMap<Key, Entry>,
        revision: u64,
    ) -> Result<Vec<Commit>, Rewritten> {
        let mut writes: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
        for (key, entry) in now {
            if self.entries.get(key) == Some(entry) {
                continue;
            }
            if entry.revision <= self.at.revision {
                return Err(Rewritten);
            }
            writes.entry(entry.revision).or_default().push(Op::put(key.clone(), entry.value.clone()));
        }
        for key in self.entries.keys().filter(|key| !now.contains_key(key)) {
            writes.entry(revision).or_default().push(Op::delete(key.clone()));
        }
        if revision < self.at.revision || (revision == self.at.revision && !writes.is_empty()) {
            return Err(Rewritten);
        }
        Ok(writes.into_iter().map(|(revision, ops)| Commit { revision, ops }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(Space::Token, name)
    }

    fn state(entries: &[(&str, u64, &'static str)]) -> BTreeMap<Key, Entry> {
        let entry = |(name, revision, value): &(&str, u64, &'static str)| {
            (key(name), Entry { revision: *revision, value: (*value).into() })
        };
        entries.iter().map(entry).collect()
    }

    fn mirror(revision: u64, entries: &[(&str, u64, &'static str)]) -> Mirror {
        Mirror { at: Position { epoch: "e".into(), revision }, entries: state(entries) }
    }

    #[test]
    fn a_difference_leads_to_the_state_it_was_made_from() {
        let mut mirror = mirror(10, &[("a", 3, "1"), ("b", 10, "2"), ("c", 4, "3")]);
        let now = state(&[("a", 3, "1"), ("b", 12, "9"), ("d", 12, "4"), ("e", 15, "5")]);
        let commits = mirror.difference(&now, 20).expect("a continuation");
        assert_eq!(commits.iter().map(|commit| commit.revision).collect::<Vec<_>>(), [12, 15, 20]);
        assert_eq!(commits[2].ops, [Op::delete(key("c"))]);
        mirror.apply(commits);
        assert_eq!((mirror.at.revision, mirror.entries), (20, now));
    }

    #[test]
    fn what_was_missed_is_not_told_twice() {
        let mut mirror = mirror(10, &[]);
        let commit = |revision| Commit { revision, ops: vec![Op::put(key("a"), "1")] };
        assert_eq!(mirror.apply(vec![commit(9), commit(10), commit(11)]).len(), 1);
        assert_eq!(mirror.revision_of(&key("a")), Some(11));
    }

    #[test]
    fn a_history_that_went_back_is_noticed() {
        let mirror = mirror(10, &[("a", 3, "1"), ("b", 10, "2")]);
        for (name, entries, revision) in [
            ("an older revision", vec![("a", 3, "1")], 5),
            ("another old value", vec![("a", 3, "x"), ("b", 10, "2")], 20),
            ("a deleted key is back", vec![("a", 3, "1"), ("b", 10, "2"), ("c", 7, "3")], 20),
            ("a key is gone without a revision", vec![("a", 3, "1")], 10),
        ] {
            assert_eq!(mirror.difference(&state(&entries), revision), Err(Rewritten), "{name}");
        }
        assert_eq!(mirror.difference(&mirror.entries, 10), Ok(vec![]));
        assert_eq!(mirror.difference(&mirror.entries, 30), Ok(vec![]), "others write too");
    }
}
