//! `cargo xtask ci`: what runs before a change lands, each step timed, the first failure ends it.

use std::time::{Duration, SystemTime};

use crate::process::{cargo, succeeds};

/// Runs every step; `false` when one failed.
pub(crate) fn run() -> anyhow::Result<bool> {
    let steps: [(&str, &dyn Fn() -> anyhow::Result<bool>); 5] = [
        ("format", &|| succeeds(&mut cargo(&["fmt", "--all", "--check"]))),
        ("dependencies", &crate::deny::run),
        ("lints", &|| {
            // Built as the tests are: what build scripts compile serves both.
            let mut clippy = cargo(&["clippy", "--workspace", "--all-targets", "--quiet"]);
            succeeds(clippy.args(["--", "-D", "warnings"]).envs(crate::image::STATIC))
        }),
        ("tests", &|| crate::test::run(true, &[])),
        ("fuzzing", &crate::fuzz::briefly),
    ];
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let total = steps.len();
    for (index, (name, step)) in steps.into_iter().enumerate() {
        println!("== {} of {total}: {name}", index + 1);
        let begin = SystemTime::now();
        let passed = step()?;
        times.push((name, begin.elapsed().unwrap_or_default()));
        if !passed {
            eprintln!("error: step `{name}` failed");
            return Ok(false);
        }
    }
    let times: Vec<String> = times.iter().map(|(name, time)| format!("{name} {}s", time.as_secs())).collect();
    eprintln!("ci: all steps passed ({})", times.join(", "));
    Ok(true)
}
