//! `pillion ready` and `pillion wait`: start ordering, and the images' health check.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use pillion_config::DurationText;

use crate::api::{TrustArguments, api_origin};
use crate::http::{Origin, send};
use crate::output::note;

/// How long one question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// How often `wait` asks.
const QUESTION_INTERVAL: Duration = Duration::from_millis(100);
/// The proxy's port for `/metrics`, `/ready` and `/live`.
const METRICS_PORT: u16 = 15020;

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Whom to ask: a proxy's metrics address, or a registry's API; off loopback it is `https://…`.
    #[arg(long, env = "PILLION_READY_ADDRESS", default_value = "127.0.0.1:15020", value_name = "HOST:PORT", value_parser = metrics_origin)]
    address: Origin,
    /// Ask the registry with this API, as other commands write it: `http://127.0.0.1:7070`.
    #[arg(long, env = "PILLION_READY_API", value_name = "URL", conflicts_with = "address", value_parser = api_origin)]
    api: Option<Origin>,
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
    /// Give up after so long: seconds, or `500ms`, `2m`.
    #[arg(long, env = "PILLION_WAIT_TIMEOUT", default_value = "60", value_name = "DURATION", value_parser = limit)]
    timeout: Duration,
}

impl Target {
    /// The roots are read with each question: a registry writes them at its first start.
    async fn ask(&self) -> anyhow::Result<()> {
        let origin = self.origin();
        ask(origin, self.trust.tls(origin)?).await
    }

    fn origin(&self) -> &Origin {
        self.api.as_ref().unwrap_or(&self.address)
    }
}

fn metrics_origin(text: &str) -> Result<Origin, String> {
    Origin::parse(text, METRICS_PORT).map_err(|error| format!("{error:#}"))
}

fn limit(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let limit = seconds.or_else(|| Some(DurationText::parse(text)?.0));
    limit.ok_or_else(|| "want seconds, or a duration such as 500ms or 2m".to_owned())
}

/// Asks once; an error when it is not ready.
pub(crate) async fn ready(arguments: ReadyArguments) -> anyhow::Result<()> {
    arguments.target.ask().await
}

/// Asks until it is ready or the time is over.
pub(crate) async fn wait(arguments: WaitArguments) -> anyhow::Result<()> {
    let target = &arguments.target;
    until_ready(target.origin(), arguments.timeout, async || target.ask().await).await
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
