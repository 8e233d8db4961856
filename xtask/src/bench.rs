//! `cargo xtask bench <what>`: builds what users run, and a program that measures it.

use anyhow::ensure;

use crate::process::{cargo, command, succeeds};

/// Builds the binary and the benches with `profile`, and runs `bench-<what>` with `rest`.
pub(crate) fn run(what: &str, profile: &str, rest: &[String]) -> anyhow::Result<bool> {
    let program = format!("bench-{what}");
    let mut build = cargo(&["build", "--package", "pillion", "--package", "pillion-benches", "--bins"]);
    ensure!(succeeds(build.args(["--profile", profile]))?, "the build failed");
    let folder = crate::test::target_directory()?.join(if profile == "dev" { "debug" } else { profile });
    let mut bench = command(folder.join(program), &[]);
    bench.env("PILLION_BIN", folder.join("pillion")).env("PILLION_BENCH_PROFILE", profile).args(rest);
    succeeds(&mut bench)
}
