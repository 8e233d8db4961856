//! `cargo xtask image`: the static binary, and the container image around it.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::process::{cargo, command, succeeds};

/// The only target: a binary that needs nothing of the image it runs in.
const TARGET: &str = "x86_64-unknown-linux-gnu";
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
    let arguments =
        ["build", "--package", "pillion", "--bin", "pillion", "--target", TARGET, "--profile", profile];
    // With --target the flag reaches our code alone; build scripts and macros cannot be static.
    let mut build = cargo(&arguments);
    ensure!(succeeds(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?, "the static build failed");
    let target = crate::test::target_directory()?;
    let context = target.join("image");
    for folder in ["state", "tmp"] {
        let folder = context.join(folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let folder = if profile == "dev" { "debug" } else { profile };
    let built = target.join(TARGET).join(folder).join("pillion");
    std::fs::copy(&built, context.join("pillion")).with_context(|| format!("copy {}", built.display()))?;
    Ok(context)
}
