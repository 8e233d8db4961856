//! What a registry costs: see [`pillion_benches::registry`].

use clap::Parser;
use pillion_benches::registry::{Arguments, run};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&Arguments::parse()))?.finish()
}
