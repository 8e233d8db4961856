//! What Envoy did beside what Pillion did.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::chance;
use super::fixture::{Case, Tally};
use super::seen::Seen;

/// A case's verdict.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Differences that nothing explains, as text.
    pub(crate) unexplained: Option<String>,
    /// Rows that explain a difference there is.
    pub(crate) explained: BTreeSet<String>,
    /// Rows the case names although they explain nothing.
    pub(crate) idle: BTreeSet<String>,
}

/// Compares what two proxies did in a case.
pub(crate) fn compare(case: &Case, envoy: &Seen, pillion: &Seen) -> Verdict {
    let mut verdict = Verdict::default();
    let (mut left, mut right) = (envoy.lines.clone(), pillion.lines.clone());
    if let Some(chance) = &case.without {
        left.retain(|line| !line.contains(chance));
        right.retain(|line| !line.contains(chance));
    }
    for known in &case.differs {
        let take = |lines: &mut Vec<String>| -> Vec<String> {
            let (taken, rest) = lines.drain(..).partition(|line| line.contains(&known.lines));
            *lines = rest;
            taken
        };
        let into =
            if take(&mut left) == take(&mut right) { &mut verdict.idle } else { &mut verdict.explained };
        into.insert(known.id.clone());
    }
    let mut text = String::new();
    if left != right {
        text += &difference(&left, &right);
    }
    if let Some(within) = case.time_within
        && envoy.took_ms.abs_diff(pillion.took_ms) > within
    {
        let _ = writeln!(
            text,
            "      took: envoy {} ms, pillion {} ms, want at most {within} ms between them",
            envoy.took_ms, pillion.took_ms
        );
    }
    if case.tally == Tally::Chance && !chance::same(&envoy.tally, &pillion.tally) {
        let _ = writeln!(
            text,
            "      counts: envoy {:?}\n      counts: pillion {:?}",
            envoy.tally, pillion.tally
        );
    }
    verdict.unexplained = (!text.is_empty()).then_some(text);
    verdict
}

/// The lines of both, with what only one has marked by who has it.
fn difference(envoy: &[String], pillion: &[String]) -> String {
    let (rows, columns) = (envoy.len(), pillion.len());
    // Longest common subsequence, from the ends.
    let mut common = vec![vec![0_usize; columns + 1]; rows + 1];
    for i in (0..rows).rev() {
        for j in (0..columns).rev() {
            common[i][j] = if envoy[i] == pillion[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < rows || j < columns {
        let (who, line) = if i < rows && j < columns && envoy[i] == pillion[j] {
            (i, j) = (i + 1, j + 1);
            ("       ", &envoy[i - 1])
        } else if i < rows && (j == columns || common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ("ENVOY  ", &envoy[i - 1])
        } else {
            j += 1;
            ("PILLION", &pillion[j - 1])
        };
        let _ = writeln!(text, "      {who} {line}");
    }
    text
}
