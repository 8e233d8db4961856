//! The `pillion` binary: arguments in, work done by the crates below, output and exit code out.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; `run` has its command's, 127 and 126 where that
//! cannot be started (see [`exit`]).

mod allocator;
mod api;
mod arguments;
mod commands;
mod demo;
#[cfg(test)]
mod docs;
mod exit;
mod files;
mod http;
mod logging;
mod onlooker;
mod output;
mod pem;
mod store;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os(demo::child::DIE_WITH_PARENT).is_some() {
        // Without it a sidecar would outlive a demo that is killed. If it fails, it only may.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    }
    exit::code(commands::execute(arguments::parse().command))
}
