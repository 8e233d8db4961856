//! Examples to begin from.

use std::path::Path;

use anyhow::{Context as _, ensure};

/// The examples of one target, in the order of their names.
pub(crate) struct Corpus(Vec<(String, Vec<u8>)>);

impl Corpus {
    /// Reads every file of a folder.
    ///
    /// # Errors
    ///
    /// If there is none, or one cannot be read.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut examples = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            let file = entry?.path();
            let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            examples.push((file.display().to_string(), bytes));
        }
        examples.sort();
        ensure!(!examples.is_empty(), "{} is empty", folder.display());
        Ok(Self(examples))
    }

    /// Every example with its file.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// One of them.
    pub(crate) fn pick(&self, random: &mut fastrand::Rng) -> &[u8] {
        &self.0[random.usize(..self.0.len())].1
    }
}
