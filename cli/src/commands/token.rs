//! `pillion token`: join tokens, with which sidecars obtain their first identity, and operators' tokens
//! for the HTTP API.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use http::Method;
use serde_json::{Map, Value};

use super::get::text;
use crate::api::{self, ApiArguments};
use crate::output::{self, Format, OutputArguments, Rows, line};

/// `pillion token`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a join token, or with --role an operator's, and print it; its secret is shown only now.
    Create(CreateArguments),
    /// List tokens, without their secrets.
    List(ListArguments),
    /// Delete a token.
    Delete(DeleteArguments),
}

/// Arguments of `pillion token create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArguments {
    /// How long it is good: `15m`, `24h`.
    #[arg(long, env = "PILLION_TOKEN_TTL", value_name = "DURATION", default_value = "1h", value_parser = ttl)]
    ttl: String,
    /// May be used any number of times, as task definitions need it; without it, once.
    #[arg(long, env = "PILLION_REUSABLE")]
    reusable: bool,
    /// Good only for this service.
    #[arg(long, env = "PILLION_SERVICE", value_name = "NAME")]
    service: Option<String>,
    /// Good only in this namespace.
    #[arg(short, long, env = "PILLION_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Make an operator's token for the HTTP API instead: `read`, `write` or `admin`. Needs --name.
    #[arg(long, env = "PILLION_ROLE", value_name = "ROLE", value_parser = ["read", "write", "admin"], requires = "name")]
    role: Option<String>,
    /// Who will have the operator's token; one of the same name ends.
    #[arg(long, env = "PILLION_NAME", value_name = "NAME", requires = "role")]
    name: Option<String>,
    /// Write the token to this file (mode 0600) rather than print it.
    #[arg(long, env = "PILLION_OUT", value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Arguments of `pillion token list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    api: ApiArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Arguments of `pillion token delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArguments {
    /// A join token's id, its part before the first dot, or the name of an operator's token.
    id: String,
    #[command(flatten)]
    api: ApiArguments,
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(arguments) => create(arguments).await,
        Command::List(arguments) => list(arguments).await,
        Command::Delete(arguments) => delete(arguments).await,
    }
}

/// The registry says which durations it takes; a number alone is told here.
fn ttl(text: &str) -> Result<String, String> {
    match text.parse::<u64>() {
        Ok(number) => Err(format!("the unit is missing; want {number}s, {number}m or {number}h")),
        Err(_) => Ok(text.to_owned()),
    }
}

async fn create(arguments: CreateArguments) -> anyhow::Result<()> {
    let mut body = Map::new();
    body.insert("ttl".to_owned(), arguments.ttl.into());
    body.insert("reusable".to_owned(), arguments.reusable.into());
    for (field, value) in [
        ("service", arguments.service),
        ("namespace", arguments.namespace),
        ("role", arguments.role),
        ("name", arguments.name),
    ] {
        if let Some(value) = value {
            body.insert(field.to_owned(), value.into());
        }
    }
    // Before the token is made: one that nobody can read is good for nobody, but valid.
    let out = arguments
        .out
        .as_deref()
        .map(|file| Ok::<_, anyhow::Error>((file, open_secret(file)?)))
        .transpose()?;
    let headers = [("content-type", "application/json")];
    let client = arguments.api.client()?;
    let answer =
        client.request(Method::POST, "/v1/tokens", &headers, Value::Object(body).to_string()).await?;
    let created = api::json(&answer)?;
    let token = created["token"].as_str().context("the answer holds no token")?;
    match (out, arguments.output.format) {
        (Some((path, mut file)), _) => file
            .set_len(0)
            .and_then(|()| writeln!(file, "{token}"))
            .with_context(|| format!("write {}", path.display())),
        (None, Format::Table) => line(token), // alone, so that it can be assigned in a shell
        (None, format) => output::print(format, &created, || Rows::new([])),
    }
}

/// What the file held before stays until there is a token.
fn open_secret(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.with_context(|| format!("write {}", path.display()))
}

async fn list(arguments: ListArguments) -> anyhow::Result<()> {
    let answer = arguments.api.client()?.get("/v1/tokens").await?;
    let list = &answer["tokens"];
    output::print(arguments.output.format, &answer, || {
        let mut rows = Rows::new(["ID", "FOR", "USES", "EXPIRES"]);
        for token in list.as_array().into_iter().flatten() {
            let service = match (token["service"].as_str(), token["namespace"].as_str()) {
                (Some(service), Some(namespace)) => format!("{service}.{namespace}"),
                (Some(one), None) | (None, Some(one)) => one.to_owned(),
                (None, None) => "any service".to_owned(),
            };
            let uses = match (token["reusable"].as_bool(), token["used"].is_null()) {
                (Some(true), _) => "any number",
                (_, true) => "one",
                (_, false) => "none left",
            };
            rows.push([text(token, "id"), service, uses.to_owned(), expiry(&token["expires"])]);
        }
        for token in answer["operators"].as_array().into_iter().flatten() {
            let role = format!("the API: {}", text(token, "role"));
            rows.push([text(token, "name"), role, "any number".to_owned(), expiry(&token["expires"])]);
        }
        rows
    })
}

fn expiry(seconds: &Value) -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    match seconds.as_u64().and_then(|end| end.checked_sub(now)) {
        Some(left) => format!("in {} min", left.div_ceil(60)),
        None => "expired".to_owned(),
    }
}

async fn delete(arguments: DeleteArguments) -> anyhow::Result<()> {
    let path = format!("/v1/tokens/{}", arguments.id);
    arguments.api.client()?.request(Method::DELETE, &path, &[], "").await?;
    line(format_args!("token {} deleted", arguments.id))
}
