//! The `pillion` binary: arguments in, work done by the crates below, output and exit code out.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage (see [`exit`]).

mod arguments;
mod commands;
mod demo;
mod exit;
mod files;
mod http;
mod output;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    exit::code(commands::run(arguments.command))
}
