//! Resources in files: each file is a `DiscoveryResponse` in YAML or JSON, read again when another
//! file is moved to its place, or into the folder that is watched for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use pillion_config::{Diagnostics, document};
use pillion_xds::ads::client::{Changed, Rejected, Update};
use pillion_xds::decode::{FileSource, Problem};
use pillion_xds::json::discovery_response;
use pillion_xds::type_url::{CLUSTER, LISTENER, label};
use tokio::sync::Notify;
use tracing::warn;

use super::item::{self, Item};
use crate::runtime::Runtime;

/// Watches folders.
pub(super) struct Files {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    moved: Arc<Moved>,
}

/// What was moved to where it is watched.
#[derive(Default)]
struct Moved {
    paths: Mutex<BTreeSet<PathBuf>>,
    news: Notify,
}

/// Paths remembered until somebody looks; with more, everything is read again.
const MOVED_MAX: usize = 4096;

impl Files {
    pub(super) fn new() -> Self {
        let moved = Arc::<Moved>::default();
        let told = Arc::clone(&moved);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            // What is written in place is not read: it may be half of it.
            if matches!(event.kind, EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))) {
                told.add(event.paths);
            }
        });
        let watcher = watcher.map_err(|error| warn!(%error, "files cannot be watched")).ok();
        Self { watcher, folders: BTreeSet::new(), moved }
    }

    /// Watches what these need, and nothing else.
    pub(super) fn watch<'a>(&mut self, files: impl Iterator<Item = &'a FileSource>) {
        let wanted: BTreeSet<PathBuf> = files.map(|file| folder(file).to_owned()).collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.folders.difference(&wanted) {
            let _ = watcher.unwatch(gone); // it may be gone itself
        }
        let mut watched: BTreeSet<PathBuf> = self.folders.intersection(&wanted).cloned().collect();
        for folder in wanted.difference(&self.folders) {
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(watched.insert(folder.clone())),
                Err(error) => warn!(folder = %folder.display(), %error, "the folder cannot be watched"),
            }
        }
        self.folders = watched;
    }

    /// Waits until something was moved.
    pub(super) async fn news(&self) {
        self.moved.news.notified().await;
    }

    /// What was moved since the last time, as a judgement on files.
    pub(super) fn take(&self) -> impl Fn(&FileSource) -> bool + use<> {
        let paths = std::mem::take(&mut *self.moved.paths.lock().unwrap_or_else(PoisonError::into_inner));
        move |file| {
            paths.len() >= MOVED_MAX
                || match &file.watched_directory {
                    Some(folder) => paths.iter().any(|path| path.parent() == Some(Path::new(folder))),
                    None => {
                        let name = Path::new(&file.path).file_name().unwrap_or_default();
                        paths.contains(&folder(file).join(name))
                    }
                }
        }
    }
}

impl Moved {
    fn add(&self, paths: Vec<PathBuf>) {
        let mut all = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        for path in paths {
            if all.len() < MOVED_MAX {
                all.insert(path);
            }
        }
        drop(all);
        self.news.notify_one();
    }
}

/// Where something is to be moved to.
fn folder(file: &FileSource) -> &Path {
    let own = || Path::new(&file.path).parent().filter(|folder| !folder.as_os_str().is_empty());
    let watched = file.watched_directory.as_deref().map(Path::new);
    watched.or_else(own).unwrap_or_else(|| Path::new("."))
}

/// Reads a file of resources of one type; `have` are the names it has held before.
///
/// # Errors
///
/// It is no `DiscoveryResponse`. Resources that are not valid are in the update.
pub(super) fn read(
    file: &FileSource,
    type_url: &str,
    have: &[String],
    runtime: &Runtime,
) -> Result<Update<Item>, String> {
    let text = std::fs::read_to_string(&file.path).map_err(|error| format!("{}: {error}", file.path))?;
    let document = document::parse(&text, &file.path).map_err(|mistakes| mistakes.to_string())?;
    let located = |prefix: &str, problems: &[Problem]| {
        let place = |problem: &Problem| {
            let dot = if prefix.is_empty() || problem.path.is_empty() { "" } else { "." };
            document.diagnostic(&format!("{prefix}{dot}{}", problem.path), problem.reason.as_str())
        };
        Diagnostics(problems.iter().map(place).collect()).to_string()
    };
    let response = discovery_response(&document.value).map_err(|problems| located("", &problems))?;
    let mut update = Update {
        type_url: type_url.to_owned(),
        changed: Vec::new(),
        removed: Vec::new(),
        rejected: Vec::new(),
    };
    let mut seen = BTreeMap::new();
    for (index, any) in response.resources.into_iter().enumerate() {
        let at = format!("resources[{index}]");
        let refuse = |reason: String| located(&at, &[Problem { path: String::new(), reason }]);
        if any.type_url != type_url {
            let reason = refuse(format!("is of type {:?}, want {type_url:?}", any.type_url));
            update.rejected.push(Rejected { name: String::new(), reason });
            continue;
        }
        let name = pillion_xds::ads::client::resource_name(&any.value);
        if let Some(before) = seen.insert(name.clone(), index) {
            let reason = refuse(format!("{} `{name}` is also resources[{before}]", label(type_url)));
            update.rejected.push(Rejected { name, reason });
            continue;
        }
        let read = item::read(type_url, &any.value).map_err(|error| located(&at, &error.problems));
        match read.and_then(|value| value.check(runtime).map_err(refuse).map(|()| value)) {
            Ok(value) => update.changed.push(Changed {
                name,
                version: response.version_info.clone(),
                body: any.value.into(),
                value,
            }),
            Err(reason) => update.rejected.push(Rejected { name, reason }),
        }
    }
    if matches!(type_url, CLUSTER | LISTENER) {
        update.removed = have.iter().filter(|name| !seen.contains_key(*name)).cloned().collect();
    }
    Ok(update)
}
