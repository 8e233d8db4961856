//! `pillion completions`: a script for the user's shell.

use std::io::Write;

use anyhow::Context;
use clap::CommandFactory;

/// Arguments of `pillion completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell to write for.
    shell: clap_complete::Shell,
}

/// Prints the script.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut command = crate::arguments::Arguments::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "pillion", &mut script);
    std::io::stdout().lock().write_all(&script).context("write to stdout")
}
