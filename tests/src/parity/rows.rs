//! The tables of `docs/deviations.md`: which differences are known, by their ids.

use std::collections::BTreeMap;
use std::path::Path;

/// What a row says of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Meant.
    Deviation,
    /// Not yet mended.
    Gap,
}

/// Ids of the rows that cases can show. Rows without one (`–`) concern what a bootstrap cannot show.
///
/// # Panics
///
/// If the page cannot be read, or holds an id twice.
pub(crate) fn read(page: &Path) -> BTreeMap<String, Kind> {
    let text = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let mut kind = Kind::Deviation;
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        if line.starts_with("## ") {
            kind = Kind::Gap;
        }
        let id = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')).map(|(id, _)| id);
        if let Some(id) = id {
            let twice = rows.insert(id.to_owned(), kind);
            assert!(twice.is_none(), "{}: the id {id} stands twice", page.display());
        }
    }
    rows
}
