//! One file per command: its arguments and what it does.

pub(crate) mod completions;
pub(crate) mod ready;
pub(crate) mod schema;
pub(crate) mod validate;

use std::future::Future;

use anyhow::Context;

use crate::arguments::Command;

/// Runs the command to its end.
pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Ready(arguments) => block_on(ready::ready(arguments)),
        Command::Wait(arguments) => block_on(ready::wait(arguments)),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::DemoService(service) => block_on(crate::demo::services::run(service)),
    }
}

/// Runs a future on this thread: enough for commands, which wait most of the time.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}
