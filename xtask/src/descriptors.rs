//! Writes the protobuf descriptors that Envoy's JSON form needs, without protoc.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// What is kept: these files and what they import.
const ROOTS: [&str; 7] = [
    "envoy/config/",
    "envoy/extensions/",
    "envoy/service/discovery/v3/",
    "envoy/service/load_stats/v3/",
    "envoy/service/status/v3/",
    "envoy/admin/v3/",
    "envoy/type/",
];

/// Reads the descriptors that envoy-types was generated from, leaves out comments and what nothing
/// needs, adds our own, and writes `xds/descriptors/envoy.bin`.
pub(crate) fn run() -> anyhow::Result<()> {
    let set = build()?;
    let target = root()?.join(TARGET);
    std::fs::write(&target, set.encode_to_vec()).with_context(|| format!("write {}", target.display()))?;
    println!("{TARGET}: {} files, {} bytes", set.file.len(), set.encoded_len());
    Ok(())
}

const TARGET: &str = "xds/descriptors/envoy.bin";

fn root() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")
}

fn build() -> anyhow::Result<FileDescriptorSet> {
    let root = root()?;
    let source = envoy_types()?.join("src/generated/types.bin");
    let bytes = std::fs::read(&source).with_context(|| format!("read {}", source.display()))?;
    let theirs = FileDescriptorSet::decode(bytes.as_slice()).context("read envoy-types' descriptors")?;
    let include = [root.join("xds/proto")];
    let ours = protox::compile(["pillion/mesh/v1/mesh.proto", "xds/type/v3/typed_struct.proto"], include)
        .context("compile xds/proto")?;
    let files: BTreeMap<String, FileDescriptorProto> =
        theirs.file.into_iter().chain(ours.file).map(|file| (file.name().to_owned(), file)).collect();

    let mut wanted = Vec::new();
    let mut seen = BTreeSet::new();
    for name in files.keys() {
        let ours = name.starts_with("pillion/") || name.starts_with("xds/type/v3/");
        if ours || ROOTS.iter().any(|root| name.starts_with(root)) {
            add(name, &files, &mut seen, &mut wanted)?;
        }
    }
    Ok(FileDescriptorSet { file: wanted })
}

/// Imports first, each once, without comments.
fn add(
    name: &str,
    files: &BTreeMap<String, FileDescriptorProto>,
    seen: &mut BTreeSet<String>,
    wanted: &mut Vec<FileDescriptorProto>,
) -> anyhow::Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(file) = files.get(name) else { bail!("no descriptor of {name}") };
    for import in &file.dependency {
        add(import, files, seen, wanted)?;
    }
    let mut file = file.clone();
    file.source_code_info = None;
    wanted.push(file);
    Ok(())
}

/// The folder of the envoy-types that the workspace is built with.
fn envoy_types() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // For this platform only: the crates of others are not downloaded by a build.
    let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(platform)
        .output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .context("the workspace does not use envoy-types")?;
    Ok(Path::new(manifest).parent().context("a manifest lies in a folder")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_descriptors_are_current() {
        let committed = std::fs::read(root().unwrap().join(TARGET)).unwrap();
        assert!(build().unwrap().encode_to_vec() == committed, "run `cargo xtask descriptors`");
    }
}
