//! `pillion snapshot`, `pillion export` and `pillion import`: the whole store as a file.
//!
//! `save` asks a registry that runs; the others work on a store that is at rest, or on etcd. All
//! files have one form.

use std::path::PathBuf;

use http::Method;
use pillion_registry::store::snapshot::Snapshot;

use crate::api::ApiArguments;
use crate::output::note;
use crate::store::{OfflineArguments, read_snapshot, write_snapshot};

/// `pillion snapshot`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Save everything a running registry holds, the authority's key included, to a file.
    Save(SaveArguments),
    /// Put a saved file into an empty store, before the registry is started.
    Restore(FillArguments),
}

/// Arguments of `pillion snapshot save`.
#[derive(Debug, clap::Args)]
pub(crate) struct SaveArguments {
    /// Where to; as secret as the registry's data directory (mode 0600).
    file: PathBuf,
    #[command(flatten)]
    api: ApiArguments,
}

/// Arguments of `pillion export`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArguments {
    /// Where to; as secret as the registry's data directory (mode 0600).
    file: PathBuf,
    #[command(flatten)]
    store: OfflineArguments,
}

/// Arguments of `pillion snapshot restore` and `pillion import store`.
#[derive(Debug, clap::Args)]
pub(crate) struct FillArguments {
    /// What `snapshot save` or `export` wrote.
    file: PathBuf,
    #[command(flatten)]
    store: OfflineArguments,
}

/// `pillion import`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ImportCommand {
    /// Put what `export` wrote into an empty store of any engine.
    Store(FillArguments),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Save(arguments) => save(arguments).await,
        Command::Restore(arguments) => fill(arguments).await,
    }
}

/// Runs `pillion import`.
pub(crate) async fn import(command: ImportCommand) -> anyhow::Result<()> {
    match command {
        ImportCommand::Store(arguments) => fill(arguments).await,
    }
}

/// Runs `pillion export`.
pub(crate) async fn export(arguments: ExportArguments) -> anyhow::Result<()> {
    let snapshot = arguments.store.read().await?;
    write_snapshot(&arguments.file, &snapshot.to_text())?;
    said("exported", &snapshot);
    Ok(())
}

async fn save(arguments: SaveArguments) -> anyhow::Result<()> {
    let answer = arguments.api.client()?.request(Method::GET, "/v1/snapshot", &[], "").await?;
    let snapshot = Snapshot::parse(&answer.text())?;
    write_snapshot(&arguments.file, &answer.text())?;
    said("saved", &snapshot);
    Ok(())
}

async fn fill(arguments: FillArguments) -> anyhow::Result<()> {
    let snapshot = read_snapshot(&arguments.file)?;
    arguments.store.fill(&snapshot).await?;
    said("restored", &snapshot);
    Ok(())
}

fn said(what: &str, snapshot: &Snapshot) {
    let (entries, epoch, revision) = (snapshot.entries.len(), &snapshot.epoch, snapshot.revision);
    note(format_args!("{what} {entries} values as of {epoch}.{revision}"));
}
