//! Generates Rust from Pillion's own protos, without protoc.

use std::path::Path;

use anyhow::Context;

/// Compiles `xds/proto` and writes `xds/src/generated/pillion.mesh.v1.rs`.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    let files = protox::compile(["pillion/mesh/v1/mesh.proto"], [root.join("xds/proto")])?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    config.type_name_domain(["."], "type.googleapis.com");
    config.btree_map(["."]);
    tonic_prost_build::configure()
        .out_dir(root.join("xds/src/generated"))
        .compile_fds_with_config(files, config)
        .context("generate code from xds/proto")
}
