//! Connections carried as bytes.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

/// Bytes read at once and not yet written, per direction.
const BUFFER: usize = 16 << 10;

/// What was carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) from_client: u64,
    pub(crate) to_client: u64,
}

/// Carries bytes both ways until both sides ended, an error, `idle` without a byte, or `ends`. One
/// side's end is passed on and the other goes on.
pub(crate) async fn copy_both(
    client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    idle: Option<Duration>,
    ends: Option<Instant>,
) -> Copied {
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let (from_client, to_client) = (Cell::new(0), Cell::new(0));
    let last = Cell::new(Instant::now());
    let copying = async {
        tokio::try_join!(
            copy(&mut client_read, &mut upstream_write, &from_client, &last),
            copy(&mut upstream_read, &mut client_write, &to_client, &last),
        )
    };
    let end = async {
        match ends {
            Some(ends) => sleep_until(ends).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = copying => {}
        () = idle_for(idle, &last) => {}
        () = end => {}
    }
    Copied { from_client: from_client.get(), to_client: to_client.get() }
}

async fn idle_for(idle: Option<Duration>, last: &Cell<Instant>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let Some(at) = last.get().checked_add(idle) else { return std::future::pending().await };
        sleep_until(at).await;
        if last.get() + idle <= Instant::now() {
            return;
        }
    }
}

fn copy<'a>(
    from: &'a mut (impl AsyncRead + Unpin),
    to: &'a mut (impl AsyncWrite + Unpin),
    count: &'a Cell<u64>,
    last: &'a Cell<Instant>,
) -> impl Future<Output = io::Result<()>> + 'a {
    async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from.read(&mut buffer).await?;
            last.set(Instant::now());
            if read == 0 {
                return pin!(to.shutdown()).await;
            }
            to.write_all(&buffer[..read]).await?;
            to.flush().await?;
            count.set(count.get() + read as u64);
        }
    }
}
