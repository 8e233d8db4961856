//! The sidecar's state directory: what lets it start while the registry is away.
//!
//! Holds the generation and the identity (certificate, key, roots); the control client keeps its
//! own file there. Everything is written to a temporary file and renamed, mode 0600.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

/// A state directory; without one nothing is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct StateDir(Option<PathBuf>);

/// A file in the state directory that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("state directory: {what} {}: {source}", path.display())]
pub struct StateError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateDir {
    /// Opens the directory, making it (mode 0700) if it does not exist.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it can neither be found nor made.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, StateError> {
        let Some(path) = path else { return Ok(Self(None)) };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| StateError {
            what: "cannot make",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self(Some(path.to_owned())))
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it is there and cannot be read.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let Some(dir) = &self.0 else { return Ok(None) };
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError { what: "cannot read", path, source }),
        }
    }

    /// Replaces a file as a whole: a reader sees the old or the new content, also after a crash.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it cannot be written; the old file is then still there.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let Some(dir) = &self.0 else { return Ok(()) };
        let (path, temporary) = (dir.join(name), dir.join(format!("{name}.new")));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| StateError { what: "cannot write", path: path.clone(), source })
    }

    /// The generation of this start: one more than the last, and at least the time in
    /// milliseconds, so that it also rises when the directory was lost.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it cannot be kept. A file that does not hold a number counts as absent.
    pub(super) fn next_generation(&self, now: SystemTime) -> Result<u64, StateError> {
        let stored = self
            .read(GENERATION)?
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let millis = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let next = stored.saturating_add(1).max(millis);
        self.write(GENERATION, next.to_string().as_bytes())?;
        Ok(next)
    }
}

/// File of the generation.
const GENERATION: &str = "generation";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn generations_rise_even_when_the_clock_goes_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let state = StateDir::open(Some(&dir.path().join("state"))).expect("made");
        let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        let first = state.next_generation(at(1000)).expect("written");
        assert_eq!(first, 1000);
        assert_eq!(state.next_generation(at(10)).expect("written"), 1001);
        assert_eq!(state.next_generation(at(5000)).expect("written"), 5000);
        let mode = fs::metadata(dir.path().join("state/generation")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let state = StateDir::open(None).expect("nothing to open");
        state.write("x", b"1").expect("ignored");
        assert_eq!(state.read("x").expect("nothing"), None);
    }
}
