//! `cargo xtask test`: the whole workspace's tests, and an honest account of what ran.
//!
//! Tests append to the file named by `PILLION_PEER_REPORT` which real programs they ran against
//! (`ran<TAB>peer<TAB>test`) and which they missed (`skipped<TAB>peer<TAB>test`). A test that was
//! skipped this way counts as skipped, not as passed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context;

use crate::process::{cargo, output, succeeds, tee};

/// Runs the tests; `false` when one failed.
pub(crate) fn run(require_peers: bool, rest: &[String]) -> anyhow::Result<bool> {
    let target = target_directory()?;
    let report = target.join("peers-report.tsv");
    std::fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    std::fs::write(&report, "").with_context(|| format!("empty {}", report.display()))?;

    let nextest = output(&mut cargo(&["nextest", "--version"])).is_some();
    let all = rest.is_empty();
    // With every peer the image is tested too: then everything is built for it at once, not twice.
    let with_image = require_peers && all;
    let (built, environment) = if with_image {
        (target.join(crate::image::TARGET).join("debug"), &crate::image::STATIC[..])
    } else {
        // Who has Cargo build for a target by name finds it in a folder of that name.
        let folder = std::env::var_os("CARGO_BUILD_TARGET").unwrap_or_default();
        (target.join(folder).join("debug"), &[][..])
    };
    let binary = built.join("pillion");
    let build = |arguments: &[&str]| {
        let mut command = cargo(arguments);
        command.envs(environment.iter().copied());
        command
    };
    // All at once: by itself the binary has other features, and its dependencies would be built twice.
    if !succeeds(&mut build(&["build", "--quiet", "--workspace", "--bins", "--tests"]))? {
        return Ok(false);
    }
    if with_image {
        crate::image::fill(&binary)?;
    }
    let mut counts = Counts::default();
    let prepare = |mut command: std::process::Command| {
        command.env("PILLION_PEER_REPORT", &report).env("PILLION_BIN", &binary);
        if require_peers {
            command.env("PILLION_REQUIRE_PEERS", "true");
        }
        command
    };
    let mut passed = if nextest {
        let junit = target.join("nextest/default/junit.xml");
        std::fs::remove_file(&junit).or_else(ignore_missing)?;
        let mut command = prepare(build(&["nextest", "run", "--workspace"]));
        let passed = succeeds(command.args(rest))?;
        counts.add_junit(&junit)?;
        passed
    } else {
        eprintln!("cargo-nextest is not installed: running cargo test");
        let mut command =
            prepare(build(&["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]));
        tee(command.arg("--").args(rest), |line| counts.add_libtest(line))?
    };
    if all {
        println!("doc tests");
        passed &=
            tee(&mut build(&["test", "--quiet", "--workspace", "--doc"]), |line| counts.add_libtest(line))?;
    }

    let peers = PeerReport::read(&report)?;
    peers.print();
    counts.skip(peers.skipped_tests());
    println!("{counts}");
    if counts.passed == 0 {
        eprintln!("error: no test passed");
        return Ok(false);
    }
    Ok(passed && counts.failed == 0)
}

/// Where Cargo builds.
pub(crate) fn target_directory() -> anyhow::Result<std::path::PathBuf> {
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"]))
        .context("cargo metadata failed")?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("read cargo metadata")?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// How many tests there were.
#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    /// Adds what nextest's JUnit file counted: `<testsuites … tests="5" failures="1" errors="0" …>`.
    fn add_junit(&mut self, file: &Path) -> anyhow::Result<()> {
        let Ok(text) = std::fs::read_to_string(file) else {
            return Ok(()); // nothing ran: the build failed, or no test matched
        };
        let head = text.split_once("<testsuites").map_or("", |(_, rest)| rest);
        let head = head.split_once('>').map_or(head, |(head, _)| head);
        let number = |name: &str| -> anyhow::Result<usize> {
            let after = head.split_once(&format!(" {name}=\"")).map(|(_, after)| after);
            let digits = after.and_then(|after| after.split_once('"')).map(|(digits, _)| digits);
            let digits = digits.with_context(|| format!("{} has no attribute {name}", file.display()))?;
            digits.parse().with_context(|| format!("{}: {name}={digits}", file.display()))
        };
        let failed = number("failures")? + number("errors")?;
        self.failed += failed;
        self.passed += number("tests")? - failed;
        Ok(())
    }

    /// Adds a closing line of libtest: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add_libtest(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let part = result.split(['.', ';']).map(str::trim).find_map(|part| part.strip_suffix(word));
            part.and_then(|digits| digits.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.skipped += number("ignored");
    }

    fn skip(&mut self, tests: usize) {
        let tests = tests.min(self.passed);
        self.passed -= tests;
        self.skipped += tests;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Which tests ran against which real program.
#[derive(Default)]
struct PeerReport {
    ran: BTreeMap<String, BTreeSet<String>>,
    skipped: BTreeMap<String, BTreeSet<String>>,
}

impl PeerReport {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            let mut parts = line.split('\t');
            let (Some(what), Some(peer), Some(test)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let side = if what == "ran" { &mut report.ran } else { &mut report.skipped };
            side.entry(peer.to_owned()).or_default().insert(test.to_owned());
        }
        report
    }

    fn skipped_tests(&self) -> usize {
        self.skipped.values().flatten().collect::<BTreeSet<_>>().len()
    }

    fn print(&self) {
        println!("\npeers that took part:");
        if self.ran.is_empty() {
            println!("  none");
        }
        for (peer, tests) in &self.ran {
            println!("  {peer:<12} {}", plural(tests.len()));
        }
        for (peer, tests) in &self.skipped {
            println!(
                "  {peer:<12} MISSING: {} SKIPPED; `cargo xtask peers` installs it",
                plural(tests.len())
            );
            for test in tests {
                println!("  {:<12}   {test}", "");
            }
        }
        println!();
    }
}

fn plural(tests: usize) -> String {
    if tests == 1 { "1 test".to_owned() } else { format!("{tests} tests") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed_and_skips_are_not_passes() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "running 3 tests",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        ] {
            counts.add_libtest(line);
        }
        let report =
            PeerReport::parse("ran\tdig\ta\nskipped\tenvoy\tb\nskipped\tdocker\tb\nskipped\tenvoy\tc\n");
        counts.skip(report.skipped_tests());
        assert_eq!(counts.to_string(), "2 passed, 2 failed, 3 skipped");
    }

    #[test]
    fn nextest_counts_come_from_its_junit_file() {
        let folder = std::env::temp_dir().join(format!("pillion-xtask-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("create");
        let file = folder.join("junit.xml");
        let text = r#"<?xml version="1.0"?><testsuites name="nextest-run" tests="5" failures="1" errors="1" time="0.1">"#;
        std::fs::write(&file, text).expect("write");
        let mut counts = Counts::default();
        counts.add_junit(&file).expect("valid");
        assert_eq!(counts.to_string(), "3 passed, 2 failed, 0 skipped");
        std::fs::remove_dir_all(&folder).expect("remove");
    }
}
