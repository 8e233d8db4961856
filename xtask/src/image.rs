//! `cargo xtask image`: the static binary, and the container image around it.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::process::{cargo, command, succeeds};

/// The only target: a binary that needs nothing of the image it runs in.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What makes Cargo build for it. With a target named, the flag reaches our code alone: build scripts
/// and macros cannot be static.
pub(crate) const STATIC: [(&str, &str); 2] =
    [("CARGO_BUILD_TARGET", TARGET), ("RUSTFLAGS", "-C target-feature=+crt-static")];
/// The name of the image.
const NAME: &str = "pillion:dev";

/// Builds the binary and fills `target/image`, the context of `docker/Dockerfile`; then builds the
/// image, unless only the context is wanted.
pub(crate) fn run(profile: &str, only_context: bool) -> anyhow::Result<bool> {
    let context = context(profile)?;
    println!("the context is {}", context.display());
    if only_context {
        return Ok(true);
    }
    let context = context.to_str().context("the path of target/image is not UTF-8")?;
    succeeds(&mut command("docker", &["build", "--tag", NAME, "--file", "docker/Dockerfile", context]))
}

fn context(profile: &str) -> anyhow::Result<PathBuf> {
    let mut build = cargo(&["build", "--package", "pillion", "--bin", "pillion", "--profile", profile]);
    ensure!(succeeds(build.envs(STATIC))?, "the static build failed");
    let folder = if profile == "dev" { "debug" } else { profile };
    fill(&crate::test::target_directory()?.join(TARGET).join(folder).join("pillion"))
}

/// Puts a static binary, and what else the image holds, into `target/image`.
pub(crate) fn fill(binary: &Path) -> anyhow::Result<PathBuf> {
    let context = crate::test::target_directory()?.join("image");
    let empty = context.join("empty");
    std::fs::create_dir_all(&empty).with_context(|| format!("create {}", empty.display()))?;
    std::fs::copy(binary, context.join("pillion")).with_context(|| format!("copy {}", binary.display()))?;
    Ok(context)
}
