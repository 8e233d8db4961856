//! The binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The built `pillion` binary: what `PILLION_BIN` names, or freshly built.
///
/// # Panics
///
/// If it cannot be built.
pub fn pillion() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("PILLION_BIN") {
        Some(file) => file.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let root = repository();
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "pillion"])
        .current_dir(&root)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo build --package pillion failed");
    // Test binaries stand in target/debug/deps.
    let here = std::env::current_exe().expect("a test has a file");
    let folder = here.ancestors().nth(2).expect("two folders up is the profile's");
    folder.join("pillion")
}

/// The repository's top folder.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
