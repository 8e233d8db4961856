//! Developer commands: `cargo xtask <command>`.

mod bench;
mod ci;
mod codegen;
mod deny;
mod descriptors;
mod fuzz;
mod image;
mod peers;
mod process;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of the Pillion repository.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test of the workspace, and say how many ran and which peers took part.
    Test {
        /// Fail tests whose peer is missing, rather than skip them.
        #[arg(long, env = "PILLION_REQUIRE_PEERS")]
        require_peers: bool,
        /// Passed on to the test runner (a filter, for example).
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Install the programs we are tested against (Envoy, dig, Prometheus, …) into `target/peers`.
    Peers {
        /// Only look: install nothing.
        #[arg(long)]
        check: bool,
    },
    /// Measure a part in a run with its peers: a table, and JSON in `target/bench`.
    Bench {
        /// Which part.
        #[arg(value_parser = ["registry", "dns", "proxy"])]
        what: String,
        /// The Cargo profile to build with; `quick` builds faster and measures what users do not run.
        #[arg(long, default_value = "release")]
        profile: String,
        /// Passed on to the bench (`-- --help` lists what it takes).
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Feed changed examples to what reads what others send: HTTP API, DNS, join tokens, documents.
    Fuzz {
        /// Targets (`api`, `dns`, `token`, `config`) and options: `--seconds 60`, `--seed`, `--input`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Everything that must pass before a change lands: format, lints, dependencies, tests, fuzzing in brief.
    Ci,
    /// Check licences, sources and banned crates against `deny.toml`.
    Deny,
    /// Build the static binary and the container image around it.
    Image {
        /// The Cargo profile to build with.
        #[arg(long, default_value = "release")]
        profile: String,
        /// Only fill target/image, the folder that docker/Dockerfile copies from.
        #[arg(long)]
        only_context: bool,
    },
    /// Generate Rust from `xds/proto` into `xds/src/generated` (committed; run after editing a proto).
    Codegen,
    /// Write `xds/descriptors/envoy.bin` (committed; run after a change of envoy-types or of `xds/proto`).
    Descriptors,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test { require_peers, rest } => test::run(require_peers, &rest),
        Command::Peers { check } => peers::run(check),
        Command::Bench { what, profile, rest } => bench::run(&what, &profile, &rest),
        Command::Fuzz { rest } => fuzz::run(&rest),
        Command::Ci => ci::run(),
        Command::Deny => deny::run(),
        Command::Image { profile, only_context } => image::run(&profile, only_context),
        Command::Codegen => codegen::run().map(|()| true),
        Command::Descriptors => descriptors::run().map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's top folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
