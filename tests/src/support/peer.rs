//! The real programs on the other side, as `cargo xtask peers` installs them.
//!
//! Every use and every miss is appended to the file that `PILLION_PEER_REPORT` names, so that
//! `cargo xtask test` can say which peers took part and which tests were skipped.

use std::io::Write;
use std::path::PathBuf;

use super::binary::repository;

/// The program, if it is installed; `None` means that the test is skipped, which has been said.
///
/// # Panics
///
/// If it is missing although `PILLION_REQUIRE_PEERS` is set.
pub fn peer(program: &str) -> Option<PathBuf> {
    let found = find(program);
    let what = if found.is_some() { "ran" } else { "skipped" };
    report(what, program);
    if found.is_none() {
        assert!(
            std::env::var_os("PILLION_REQUIRE_PEERS").is_none(),
            "{program} is missing and required; `cargo xtask peers` installs it"
        );
        eprintln!("SKIPPED: {program} is missing; `cargo xtask peers` installs it");
    }
    found
}

/// A script of `tests/python`, for a Python to run.
pub fn script(name: &str) -> String {
    repository().join("tests/python").join(name).display().to_string()
}

/// Says that this test cannot run here, although the program is there, and why.
pub fn skip(program: &str, why: &str) {
    report("skipped", program);
    eprintln!("SKIPPED: {program}: {why}");
}

fn find(program: &str) -> Option<PathBuf> {
    let installed = repository().join("target/peers/bin");
    let folders = std::env::var_os("PILLION_PEERS_BIN").map_or(installed, PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(folders).chain(std::env::split_paths(&path));
    let file = places.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))?;
    // A Python finds its packages by where it is called: not by our link to it.
    Some(std::fs::read_link(&file).ok().filter(|target| target.is_absolute()).unwrap_or(file))
}

fn report(what: &str, program: &str) {
    let Some(file) = std::env::var_os("PILLION_PEER_REPORT") else { return };
    let test = std::thread::current().name().unwrap_or("unnamed test").to_owned();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(&file);
    let mut file = opened.expect("PILLION_PEER_REPORT can be written");
    // One write per line: several test processes append at once.
    file.write_all(format!("{what}\t{program}\t{test}\n").as_bytes()).expect("the report takes a line");
}
