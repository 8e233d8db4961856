//! Generates Rust from Pillion's own protos, SPIFFE's and etcd's, without protoc.

use std::path::Path;

use anyhow::Context;

/// Writes `xds/src/generated/{pillion.mesh.v1,spiffe}.rs` and `registry/src/store/etcd/generated/etcdserverpb.rs`.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    mesh(root)?;
    spiffe(root)?;
    etcd(root)
}

/// What a sidecar asks a SPIFFE agent: a client only. The service has no package.
fn spiffe(root: &Path) -> anyhow::Result<()> {
    let files = protox::compile(["spiffe/workload.proto"], [root.join("xds/proto")])?;
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(root.join("xds/src/generated"))
        .compile_fds_with_config(files, tonic_prost_build::Config::new())
        .context("generate code from xds/proto/spiffe")?;
    let generated = root.join("xds/src/generated");
    std::fs::rename(generated.join("_.rs"), generated.join("spiffe.rs")).context("name what has no package")
}

/// What the store says to etcd: a client only.
fn etcd(root: &Path) -> anyhow::Result<()> {
    let files = protox::compile(["etcd/rpc.proto"], [root.join("registry/proto")])?;
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(root.join("registry/src/store/etcd/generated"))
        .compile_fds_with_config(files, config)
        .context("generate code from registry/proto")
}

fn mesh(root: &Path) -> anyhow::Result<()> {
    let files = protox::compile(["pillion/mesh/v1/mesh.proto"], [root.join("xds/proto")])?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    config.type_name_domain(["."], "type.googleapis.com");
    config.btree_map(["."]);
    tonic_prost_build::configure()
        .codec_path("crate::codec::LeanCodec")
        .out_dir(root.join("xds/src/generated"))
        .compile_fds_with_config(files, config)
        .context("generate code from xds/proto")
}
