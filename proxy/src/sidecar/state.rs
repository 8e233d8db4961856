//! The sidecar's state directory: what lets it start while the registry is away.
//!
//! Holds the node's name, the generation and the identity (certificate, key, roots); the control
//! client keeps its own file there. Everything is written to a temporary file and renamed, mode 0600.
//! One sidecar at a time has it: it is locked.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use pillion_model::name::{InstanceId, NodeId, ServiceName};
use tracing::warn;

/// A state directory; without one nothing is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct StateDir(Option<Locked>);

#[derive(Clone, Debug)]
struct Locked {
    path: PathBuf,
    /// Held open: the lock ends with it.
    _lock: Arc<fs::File>,
}

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read or written.
    #[error("state directory: {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another sidecar runs with it.
    #[error("state directory {} is in use by another sidecar: give each its own --state-dir", .0.display())]
    InUse(PathBuf),
    /// It holds another service's state.
    #[error(
        "state directory {} belongs to {found}, not to service {want}: give each sidecar its own \
         --state-dir, or remove this one", path.display()
    )]
    OtherService {
        /// The directory.
        path: PathBuf,
        /// The node whose it is.
        found: Box<NodeId>,
        /// The service that was to use it.
        want: Box<ServiceName>,
    },
}

/// The instance whose state is in `dir`, if it is one of `service`: what a sidecar without an
/// explicit instance id goes on as, also on another port or host name.
///
/// # Errors
///
/// [`StateError`] when the file is there and cannot be read.
pub fn stored_instance(dir: &Path, service: &ServiceName) -> Result<Option<InstanceId>, StateError> {
    let node = stored_node(&dir.join(NODE))?;
    Ok(node.filter(|node| node.service == *service).map(|node| node.instance))
}

/// A file that names no node counts as absent.
fn stored_node(path: &Path) -> Result<Option<NodeId>, StateError> {
    let bytes = read(path)?;
    Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| text.trim().parse().ok()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failure("cannot read", path, source)),
    }
}

fn failure(what: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::File { what, path: path.to_owned(), source }
}

impl StateDir {
    /// Opens the directory for `node`, making it (mode 0700) if it does not exist, and locks it.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it can neither be found nor made, is in use, or is another service's.
    pub(super) fn open(path: Option<&Path>, node: &NodeId) -> Result<Self, StateError> {
        let Some(path) = path else { return Ok(Self(None)) };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| failure("cannot make", path, source))?;
        let state = Self(Some(Locked { path: path.to_owned(), _lock: Arc::new(lock(path)?) }));
        state.claim(path, node)?;
        Ok(state)
    }

    /// Notes whose it is.
    fn claim(&self, path: &Path, node: &NodeId) -> Result<(), StateError> {
        match stored_node(&path.join(NODE))? {
            Some(found) if found.service != node.service => {
                let (found, want) = (Box::new(found), Box::new(node.service.clone()));
                return Err(StateError::OtherService { path: path.to_owned(), found, want });
            }
            Some(found) if found == *node => return Ok(()),
            Some(found) => {
                warn!("state directory {} was {found}'s; its configuration is not used", path.display());
            }
            None => {}
        }
        self.write(NODE, node.to_string().as_bytes())
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it is there and cannot be read.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.0.as_ref().map_or(Ok(None), |dir| read(&dir.path.join(name)))
    }

    /// Replaces a file as a whole: a reader sees the old or the new content, also after a crash.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it cannot be written; the old file is then still there.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let Some(dir) = &self.0 else { return Ok(()) };
        let (path, temporary) = (dir.path.join(name), dir.path.join(format!("{name}.new")));
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
        write().map_err(|source| failure("cannot write", &path, source))
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

fn lock(dir: &Path) -> Result<fs::File, StateError> {
    let path = dir.join(LOCK);
    let opened = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|source| failure("cannot open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StateError::InUse(dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(failure("cannot lock", &path, source)),
    }
}

/// File of the generation.
const GENERATION: &str = "generation";
/// File of the node's name.
const NODE: &str = "node";
/// Locked while a sidecar runs.
const LOCK: &str = "lock";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn node(text: &str) -> NodeId {
        text.parse().expect(text)
    }

    #[test]
    fn generations_rise_even_when_the_clock_goes_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let state = StateDir::open(Some(&dir.path().join("state")), &node("shop/web/a")).expect("made");
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
        let state = StateDir::open(None, &node("shop/web/a")).expect("nothing to open");
        state.write("x", b"1").expect("ignored");
        assert_eq!(state.read("x").expect("nothing"), None);
    }

    #[test]
    fn one_sidecar_of_one_service_has_it_and_its_instance_is_remembered() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let open = |name: &str| StateDir::open(Some(dir.path()), &node(name));
        let stored =
            |service: &str| stored_instance(dir.path(), &service.parse().expect(service)).expect("readable");
        assert_eq!(stored("web.shop"), None);
        let first = open("shop/web/a").expect("free");
        let error = open("shop/web/a").expect_err("in use").to_string();
        assert!(error.contains("in use by another sidecar"), "{error}");
        drop(first);
        assert_eq!(stored("web.shop").expect("kept").as_str(), "a");
        assert_eq!(stored("orders.shop"), None);
        let error = open("shop/orders/b").expect_err("another service").to_string();
        assert!(error.contains("belongs to shop/web/a, not to service orders.shop"), "{error}");
        drop(open("shop/web/b").expect("an explicit id"));
        assert_eq!(stored("web.shop").expect("replaced").as_str(), "b");
    }
}
