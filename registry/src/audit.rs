//! Who changed what, and who was refused: the last of it in memory, all of it as JSON lines in a file.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Serialize;

/// One change, or one refusal.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When, Unix milliseconds.
    pub at: u64,
    /// Name of the token, SPIFFE id, or how else the right was proved; empty where it was not.
    pub who: String,
    /// Where the request came from.
    pub from: String,
    /// What was asked for: method and path, or the call.
    pub what: String,
    /// The status of the answer.
    pub outcome: String,
    /// Nothing was changed, for the right was missing.
    pub refused: bool,
}

/// The audit log of one registry process.
#[derive(Default)]
pub struct Audit {
    last: Mutex<VecDeque<Record>>,
    file: Option<Mutex<Box<dyn Write + Send>>>,
}

impl Audit {
    /// One that also writes to a file, at its end, or with `-` to standard output.
    ///
    /// # Errors
    ///
    /// The system's, if the file cannot be opened.
    pub fn open(file: Option<&Path>) -> io::Result<Self> {
        let writer: Option<Box<dyn Write + Send>> = match file {
            None => None,
            Some(path) if path == Path::new("-") => Some(Box::new(io::stdout())),
            Some(path) => {
                Some(Box::new(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?))
            }
        };
        Ok(Self { last: Mutex::default(), file: writer.map(Mutex::new) })
    }

    /// Notes what was changed or refused.
    pub fn note(&self, who: &str, from: String, what: String, outcome: String, refused: bool) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        let record = Record { at, who: who.to_owned(), from, what, outcome, refused };
        if refused {
            let Record { who, from, what, outcome, .. } = &record;
            tracing::info!(who, from, what, outcome, "refused");
        }
        if let Some(file) = &self.file {
            let mut line = serde_json::to_vec(&record).expect("plain fields have a JSON form");
            line.push(b'\n');
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = file.write_all(&line).and_then(|()| file.flush()) {
                tracing::error!(%error, "cannot write the audit log");
            }
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(record);
    }

    /// The last of it, the latest last.
    pub fn last(&self, count: usize) -> Vec<Record> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().skip(last.len().saturating_sub(count)).cloned().collect()
    }
}

/// Records kept in memory.
pub const KEPT: usize = 1000;
