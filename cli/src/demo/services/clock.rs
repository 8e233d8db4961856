//! The raw TCP sample service. It speaks first, which a proxy that waits for the client's first
//! bytes would break.

use std::time::SystemTime;

use tokio::io::{AsyncWriteExt, copy};
use tokio::net::TcpStream;

use super::Common;
use super::server::{Stop, serve};

/// Arguments of the clock.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
}

/// Serves the clock.
pub(super) async fn run(arguments: Arguments, stop: Stop) -> anyhow::Result<()> {
    let Common { listen, instance } = arguments.common;
    serve(listen, stop, move |stream, closing| {
        let instance = instance.clone();
        async move {
            closing.run_until_cancelled(talk(stream, &instance)).await;
        }
    })
    .await
}

async fn talk(mut stream: TcpStream, instance: &str) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let greeting = format!("clock {instance} {}\n", now.as_secs());
    if stream.write_all(greeting.as_bytes()).await.is_err() {
        return; // the client went away
    }
    let (mut reader, mut writer) = stream.split();
    let _ = copy(&mut reader, &mut writer).await; // until the client ends or goes away
    let _ = writer.shutdown().await;
}
