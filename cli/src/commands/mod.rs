//! One file per command: its arguments and what it does.

pub(crate) mod apply;
pub(crate) mod ca;
pub(crate) mod cert;
pub(crate) mod completions;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod diff;
pub(crate) mod drain;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod get;
pub(crate) mod proxy;
pub(crate) mod ready;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod sidecar;
pub(crate) mod snapshot;
pub(crate) mod token;
pub(crate) mod validate;

use std::future::Future;

use anyhow::Context;

use crate::arguments::Command;

/// Runs the command to its end.
pub(crate) fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Registry(arguments) => registry::run(&arguments),
        Command::Proxy(arguments) => proxy::run(&arguments),
        Command::Demo(arguments) => block_on(crate::demo::run(arguments)),
        Command::Run(arguments) => block_on(run::run(*arguments)),
        Command::InNamespace(arguments) => run::names::in_namespace(&arguments),
        Command::Ready(arguments) => block_on(ready::ready(arguments)),
        Command::Wait(arguments) => block_on(ready::wait(arguments)),
        Command::Drain(arguments) => block_on(drain::run(arguments)),
        Command::Apply(arguments) => block_on(apply::run(arguments)),
        Command::Get(arguments) => block_on(get::run(arguments)),
        Command::Describe(arguments) => block_on(describe::run(arguments)),
        Command::Delete(arguments) => block_on(delete::run(arguments)),
        Command::Diff(arguments) => block_on(diff::run(arguments)),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Schema(arguments) => schema::run(&arguments),
        Command::Explain(arguments) => block_on(explain::run(arguments)),
        Command::Token(command) => block_on(token::run(command)),
        Command::Ca(command) => block_on(ca::run(command)),
        Command::Generate(command) => block_on(generate::run(*command)),
        Command::Cert(command) => block_on(cert::run(command)),
        Command::Snapshot(command) => block_on(snapshot::run(command)),
        Command::Export(arguments) => block_on(snapshot::export(arguments)),
        Command::Import(command) => block_on(snapshot::import(command)),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::DemoService(service) => block_on(crate::demo::services::run(service)),
    }
}

/// Runs a future on this thread: enough for commands, which wait most of the time.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}
