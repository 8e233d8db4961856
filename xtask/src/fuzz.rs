//! `cargo xtask fuzz [target…]`: changed examples for everything that reads what others send.

use anyhow::ensure;

use crate::process::{cargo, command, succeeds};

/// How long CI gives each target.
const CI_SECONDS: &str = "5";

/// Builds as the tests are built, and runs `fuzz` with `rest`.
pub(crate) fn run(rest: &[String]) -> anyhow::Result<bool> {
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bins", "--tests"]);
    ensure!(succeeds(&mut build)?, "the build failed");
    let program = crate::test::target_directory()?.join("debug/fuzz");
    succeeds(command(program, &[]).args(rest))
}

/// The same for CI, which has everything built for the image.
pub(crate) fn briefly() -> anyhow::Result<bool> {
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bins", "--tests"]);
    ensure!(succeeds(build.envs(crate::image::STATIC))?, "the build failed");
    let program = crate::test::target_directory()?.join(crate::image::TARGET).join("debug/fuzz");
    succeeds(&mut command(program, &["--seconds", CI_SECONDS]))
}
