//! `pillion drain`: takes the instance beside a proxy out of service, before it is stopped.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;

use crate::http::{Origin, send};

/// Arguments of `pillion drain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The administration of the proxy on this machine.
    #[arg(long, env = "PILLION_ADMIN", default_value = "127.0.0.1:15000", value_name = "ADDRESS")]
    admin: SocketAddr,
    /// Give up waiting after so many seconds; the proxy goes on draining.
    #[arg(long, env = "PILLION_DRAIN_TIMEOUT", default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
}

/// Asks the proxy to drain, and waits until what was in flight is answered.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { admin, timeout } = arguments;
    let origin = Origin { tls: false, host: admin.ip().to_string(), port: admin.port() };
    let request = http::Request::post("/drain?wait=true").body(Bytes::new()).context("build the request")?;
    let answer = send(&origin, None, request, Duration::from_secs(timeout)).await.context("drain")?;
    let (status, text) = (answer.status, answer.text());
    anyhow::ensure!(status.is_success(), "drain: {origin} answers {status}: {}", text.trim());
    Ok(())
}
