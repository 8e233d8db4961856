//! What a sidecar does beside carrying calls: names, local ports, egress, state on disk, and its start
//! under `pillion run`.

mod commands;
mod egress;
mod names;
mod registered;
mod start;
mod state;
mod upstreams;

use pillion_tests::support::Registry;

/// Applies resources from text.
async fn apply(registry: &Registry, text: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, text).expect("written");
    let applied = registry.cli(&["apply", "-f", &file.display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
}
