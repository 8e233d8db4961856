//! `pillion ready` and `pillion wait`: start ordering, and the images' health check.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;

use crate::api::TrustArguments;
use crate::http::{Origin, send};
use crate::output::note;

/// How long one question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How often `wait` asks.
const QUESTION_INTERVAL: Duration = Duration::from_millis(100);
/// The proxy's port for `/metrics`, `/ready` and `/live`.
const METRICS_PORT: u16 = 15020;

/// The registry's port for its API.
const API_PORT: u16 = 7070;

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Whom to ask: a proxy's metrics address, or a registry's API; off loopback it is `https://…`.
    #[arg(long, env = "PILLION_READY_ADDRESS", default_value = "127.0.0.1:15020", value_name = "HOST:PORT")]
    address: String,
    /// Ask the registry with this API, as other commands write it: `http://127.0.0.1:7070`.
    #[arg(long, env = "PILLION_READY_API", value_name = "URL", conflicts_with = "address")]
    api: Option<String>,
    #[command(flatten)]
    trust: TrustArguments,
}

/// Arguments of `pillion ready`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadyArguments {
    #[command(flatten)]
    target: Target,
}

/// Arguments of `pillion wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct WaitArguments {
    #[command(flatten)]
    target: Target,
    /// Give up after so many seconds.
    #[arg(long, env = "PILLION_WAIT_TIMEOUT", default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

impl Target {
    /// The roots are read with each question: a registry writes them at its first start.
    async fn ask(&self) -> anyhow::Result<()> {
        let origin = match &self.api {
            Some(api) => Origin::parse(api, API_PORT).context("--api")?,
            None => Origin::parse(&self.address, METRICS_PORT).context("--address")?,
        };
        let tls = self.trust.tls(&origin)?;
        ask(&origin, tls).await
    }
}

/// Asks once; an error when it is not ready.
pub(crate) async fn ready(arguments: ReadyArguments) -> anyhow::Result<()> {
    arguments.target.ask().await
}

/// Asks until it is ready or the time is over.
pub(crate) async fn wait(arguments: WaitArguments) -> anyhow::Result<()> {
    let (target, limit) = (&arguments.target, Duration::from_secs(arguments.timeout));
    let whom = target.api.as_ref().unwrap_or(&target.address);
    until_ready(whom, limit, async || target.ask().await).await
}

/// Asks without TLS until it is ready, at most `limit` long.
pub(crate) async fn wait_until_ready(origin: &Origin, limit: Duration) -> anyhow::Result<()> {
    until_ready(origin, limit, async || ask(origin, None).await).await
}

async fn until_ready(
    what: impl Display,
    limit: Duration,
    ask: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let Err(error) = ask().await else { return Ok(()) };
        if tokio::time::Instant::now() >= deadline {
            return Err(error.context(format!("{what} is not ready after {limit:?}")));
        }
        tokio::time::sleep(QUESTION_INTERVAL).await;
    }
}

/// A proxy answers at `/ready`, a registry at `/readyz`.
async fn ask(origin: &Origin, tls: Option<Arc<rustls::ClientConfig>>) -> anyhow::Result<()> {
    for path in ["/ready", "/readyz"] {
        let request = http::Request::get(path).body(Bytes::new()).context("build the request")?;
        let answer = send(origin, tls.clone(), request, QUESTION_TIMEOUT).await?;
        if answer.status.is_success() {
            return Ok(());
        }
        if answer.status != http::StatusCode::NOT_FOUND {
            anyhow::bail!("{origin} is not ready: {}", answer.text().trim());
        }
    }
    note(format_args!("{origin} knows neither /ready nor /readyz"));
    anyhow::bail!("{origin} is neither a proxy nor a registry of Pillion")
}
