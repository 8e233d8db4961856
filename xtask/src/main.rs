//! Developer commands: `cargo xtask <command>`.

mod codegen;

use clap::{Parser, Subcommand};

/// Developer commands of the Pillion repository.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate Rust from `xds/proto` into `xds/src/generated` (committed; run after editing a proto).
    Codegen,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Codegen => codegen::run(),
    }
}
