//! `pillion apply`: resources from files, all or nothing.

use anyhow::Context;
use http::{Method, StatusCode};
use pillion_config::{Diagnostics, Positioned, Resource};

use crate::api::{self, ApiArguments, Client};
use crate::files::{FileArguments, show};
use crate::http::Answer;
use crate::output::{self, OutputArguments, Rows};

/// Arguments of `pillion apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: FileArguments,
    /// Say what would change, and change nothing.
    #[arg(long, env = "PILLION_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Applies the files.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let resources = arguments.files.resources()?.map_err(|diagnostics| show(&diagnostics))?;
    let applied = send(&arguments.api.client()?, &resources, arguments.dry_run).await?;
    output::print(arguments.output.format, &applied, || {
        let mut rows =
            Rows::new(["KIND", "NAMESPACE", "NAME", if arguments.dry_run { "WOULD BE" } else { "RESULT" }]);
        for result in applied["results"].as_array().into_iter().flatten() {
            let text = |field: &str| result[field].as_str().unwrap_or_default().to_owned();
            rows.push([text("kind"), text("namespace"), text("name"), text("result")]);
        }
        rows
    })
}

/// Sends the resources; what the registry finds wrong is shown at its place in the files.
pub(super) async fn send(
    client: &Client,
    resources: &[Positioned<Resource>],
    dry_run: bool,
) -> anyhow::Result<serde_json::Value> {
    anyhow::ensure!(!resources.is_empty(), "the files hold no resource");
    let body: serde_json::Value = resources.iter().map(|resource| resource.value.to_json()).collect();
    let path = if dry_run { "/v1/apply?dryRun=true" } else { "/v1/apply" };
    let headers = [("content-type", "application/json")];
    let answer = client.any(Method::POST, path, &headers, body.to_string()).await?;
    match placed(&answer, resources) {
        Some(diagnostics) => Err(show(&diagnostics).context("nothing was applied")),
        None if answer.status.is_success() => api::json(&answer),
        None => Err(api::problem(&answer)).context("nothing was applied"),
    }
}

/// The mistakes that the registry found, where it says to which of our resources each belongs.
fn placed(answer: &Answer, resources: &[Positioned<Resource>]) -> Option<Diagnostics> {
    if answer.status != StatusCode::UNPROCESSABLE_ENTITY {
        return None;
    }
    let document = api::json(answer).ok()?;
    let mistake = |error: &serde_json::Value| {
        let key = error["resource"].as_str()?;
        let resource = resources.iter().find(|resource| resource.value.key().to_string() == key)?;
        Some(resource.diagnostic(error["field"].as_str()?, error["detail"].as_str()?))
    };
    let mistakes: Option<Vec<_>> = document["errors"].as_array()?.iter().map(mistake).collect();
    mistakes.filter(|mistakes| !mistakes.is_empty()).map(Diagnostics)
}
