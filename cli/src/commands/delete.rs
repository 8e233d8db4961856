//! `pillion delete`: takes a resource away.

use anyhow::Context;
use http::Method;

use super::get::{Name, kind, resource_path};
use crate::api::ApiArguments;
use crate::output::line;

/// Arguments of `pillion delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The kind of resource, such as route.
    kind: String,
    /// Its name: `canary.shop`, or `canary` with `-n shop`.
    name: String,
    /// Its namespace.
    #[arg(short, long, env = "PILLION_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Say whether it could be deleted, and delete nothing.
    #[arg(long, env = "PILLION_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    api: ApiArguments,
}

/// Deletes it.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let kind = kind(&arguments.kind)?;
    let name = Name::parse(&arguments.name, arguments.namespace.as_deref())?;
    let query = if arguments.dry_run { "?dryRun=true" } else { "" };
    let path = format!("{}{query}", resource_path(kind, &name));
    arguments.api.client()?.request(Method::DELETE, &path, &[], "").await.context("nothing was deleted")?;
    let done = if arguments.dry_run { "could be deleted" } else { "deleted" };
    line(format_args!("{} {}/{} {done}", kind.as_str(), name.namespace, name.name))
}
