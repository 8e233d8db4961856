//! What a run of all fixtures comes to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::rows::Kind;

/// The sum of a run.
#[derive(Debug, Default)]
pub struct Summary {
    pub(crate) files: usize,
    pub(crate) cases: usize,
    /// Differences that nothing explains: case and text.
    pub(crate) differences: Vec<(String, String)>,
    /// Cases that show a row of the tables.
    pub(crate) shown: BTreeMap<String, BTreeSet<String>>,
    /// What is wrong with fixtures or tables.
    pub(crate) mistakes: Vec<String>,
    /// Cases that differed once and not when they were run again.
    pub(crate) unsteady: Vec<String>,
    pub(crate) rows: BTreeMap<String, Kind>,
    pub(crate) took: Duration,
}

impl Summary {
    /// Whether nothing differs that the tables do not explain, and the tables say nothing that is not so.
    pub fn is_good(&self) -> bool {
        self.differences.is_empty() && self.mistakes.is_empty()
    }

    /// Adds another part of the run.
    pub(crate) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.cases += other.cases;
        self.differences.extend(other.differences);
        self.mistakes.extend(other.mistakes);
        self.unsteady.extend(other.unsteady);
        for (id, cases) in other.shown {
            self.shown.entry(id).or_default().extend(cases);
        }
    }

    fn explained(&self, kind: Kind) -> usize {
        let of_kind = self.shown.iter().filter(|(id, _)| self.rows.get(*id) == Some(&kind));
        of_kind.flat_map(|(_, cases)| cases).collect::<BTreeSet<_>>().len()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (case, text) in &self.differences {
            writeln!(f, "DIFFERENT {case}\n{text}")?;
        }
        for mistake in &self.mistakes {
            writeln!(f, "MISTAKE {mistake}")?;
        }
        for case in &self.unsteady {
            writeln!(f, "unsteady: {case}")?;
        }
        for (id, cases) in &self.shown {
            writeln!(f, "{:?} {id}: {} cases", self.rows.get(id).unwrap_or(&Kind::Gap), cases.len())?;
        }
        writeln!(
            f,
            "parity: {} files, {} cases, {} differences; explained: {} by deviations, {} by known gaps; {:.1} s",
            self.files,
            self.cases,
            self.differences.len(),
            self.explained(Kind::Deviation),
            self.explained(Kind::Gap),
            self.took.as_secs_f64()
        )
    }
}
