//! A program under measurement: on CPU 0, ended with whoever holds it.

use std::ffi::OsStr;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// How long a program may take to end by itself.
const END_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A program on CPU 0.
pub fn pinned(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program);
    command
}

/// A running program. Dropping it ends it: by SIGTERM first, for the children of some are ended by
/// their parent.
#[derive(Debug)]
pub struct Peer(pub Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        let asked = id.map(|id| kill_process(id, Signal::TERM));
        let end = Instant::now() + END_MAX;
        while asked == Some(Ok(())) && Instant::now() < end {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
