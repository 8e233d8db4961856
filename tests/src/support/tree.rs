//! The processes below a process, as `/proc` tells them.

use std::collections::BTreeMap;

use rustix::process::{Pid, Signal, kill_process};

/// A process, told apart from a later one with the same id by when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descendant {
    id: u32,
    started: String,
    /// Its command line.
    pub command: String,
}

impl Descendant {
    /// Kills it, if it still runs.
    pub fn kill(&self) {
        let id = i32::try_from(self.id).ok().and_then(Pid::from_raw);
        if let Some(id) = id.filter(|_| self.runs()) {
            let _ = kill_process(id, Signal::KILL); // it may end at this very moment
        }
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        stat(self.id).is_some_and(|stat| stat.started == self.started && stat.state != "Z")
    }
}

/// Everything that `id` started, and what that started.
///
/// # Panics
///
/// If `/proc` cannot be read.
pub fn descendants(id: u32) -> Vec<Descendant> {
    let entries = std::fs::read_dir("/proc").expect("/proc can be read");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let all: BTreeMap<u32, Stat> = ids.filter_map(|id| Some((id, stat(id)?))).collect();
    let mut found = vec![id];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(id, _)| *id));
        next += 1;
    }
    let describe = |id: &u32| {
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        Descendant { id: *id, started: all[id].started.clone(), command }
    };
    found.iter().skip(1).map(describe).collect()
}

struct Stat {
    parent: u32,
    state: String,
    started: String,
}

/// `None`: there is no such process (any more).
fn stat(id: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name is in parentheses and may hold anything; fields are counted after it (proc(5)).
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: field(3)?.to_owned(),
        parent: field(4)?.parse().ok()?,
        started: field(22)?.to_owned(),
    })
}
