//! A hosts file that is kept: for programs that look names up there, where DNS cannot be redirected.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use super::StartError;

/// A hosts file. What stood in it stays; services' names follow.
pub(super) struct Hosts {
    path: PathBuf,
    file: File,
    /// What is not ours.
    base: String,
    written: Mutex<String>,
}

impl Hosts {
    /// Opens a file that exists.
    ///
    /// # Errors
    ///
    /// [`StartError::Hosts`] when it cannot be read or written.
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::Hosts { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let own = text.find(MARK).unwrap_or(text.len());
        let base = text[..own].trim_end().to_owned();
        Ok(Self { path: path.to_owned(), file, base, written: Mutex::new(text) })
    }

    /// Makes these the names, if they are not already.
    pub(super) fn keep(&self, names: &BTreeMap<&str, Ipv4Addr>) {
        let mut text = format!("{}\n{MARK}\n", self.base);
        for (name, address) in names {
            let _ = writeln!(text, "{address} {name}"); // into a String: cannot fail
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written == text {
            return;
        }
        match self.write(&text) {
            Ok(()) => *written = text,
            Err(error) => warn!(%error, "cannot write {}", self.path.display()),
        }
    }

    /// In place, since others have the file mounted: first the new content in one piece, then the
    /// length, so that no reader finds a name missing that stays.
    fn write(&self, text: &str) -> io::Result<()> {
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }
}

/// The line where our part begins.
const MARK: &str = "# Services of the mesh, kept by a Pillion sidecar:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go_below_what_was_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hosts");
        fs::write(&path, "127.0.0.1 localhost\n").expect("written");
        let read = || fs::read_to_string(&path).expect("readable");
        let address = Ipv4Addr::new(127, 64, 0, 7);
        let hosts = Hosts::open(&path).expect("there");
        hosts.keep(&BTreeMap::from([("orders.mesh.internal", address), ("web.mesh.internal", address)]));
        assert!(read().ends_with("\n127.64.0.7 orders.mesh.internal\n127.64.0.7 web.mesh.internal\n"));
        hosts.keep(&BTreeMap::from([("web.mesh.internal", address)]));
        assert_eq!(read(), format!("127.0.0.1 localhost\n{MARK}\n127.64.0.7 web.mesh.internal\n"));
        let again = Hosts::open(&path).expect("there");
        again.keep(&BTreeMap::new());
        assert_eq!(read(), format!("127.0.0.1 localhost\n{MARK}\n"));
        assert!(Hosts::open(&folder.path().join("none")).is_err());
    }
}
