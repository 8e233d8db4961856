//! What registrations into etcd cost; `PILLION_BIN` names the program.

use std::path::PathBuf;

use pillion_benches::registry::etcd::{self, Size};
use pillion_benches::report::Report;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let pillion =
        std::env::var_os("PILLION_BIN").map_or_else(|| "target/release/pillion".into(), PathBuf::from);
    let mut report = Report::new("etcd");
    etcd::run(&pillion, Size::default(), &mut report).await?;
    report.finish()
}
