//! What telling costs without a registry: a thread that writes as many bytes to as many connections, as
//! often. What a delivery costs can be no less, and most of it is the kernel's.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::usage;

/// The thread's name, by which its CPU time is found.
const NAME: &str = "bare";
/// Bytes of an event about one instance, with its frame.
const BYTES: usize = 350;
/// Connections written to in one go: the subscribers of a service.
const AT_ONCE: usize = 10;

/// A thread with connections whose other ends are read.
pub(super) struct Bare {
    turns: mpsc::Sender<(usize, Duration)>,
    ended: tokio::sync::mpsc::Receiver<usize>,
    _thread: JoinHandle<()>,
    _readers: JoinSet<()>,
}

impl Bare {
    /// Connects.
    ///
    /// # Errors
    ///
    /// If there are not enough descriptors.
    pub(super) async fn connect(connections: usize) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (mut streams, mut readers) = (Vec::new(), JoinSet::new());
        for _ in 0..connections {
            let (client, server) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
            let (mut client, server) = (client?, server?.0.into_std()?);
            server.set_nonblocking(false)?;
            server.set_nodelay(true)?;
            streams.push(server);
            readers.spawn(async move {
                let mut bytes = [0; 2 * BYTES];
                while matches!(client.read(&mut bytes).await, Ok(1..)) {}
            });
        }
        let (turns, asked) = mpsc::channel();
        let (tell, ended) = tokio::sync::mpsc::channel(1);
        let thread = std::thread::Builder::new().name(NAME.to_owned());
        let _thread = thread.spawn(move || {
            let mut next = 0;
            while let Ok((changes, time)) = asked.recv() {
                if tell.blocking_send(write(&streams, &mut next, changes, time)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { turns, ended, _thread, _readers: readers })
    }

    /// Writes `changes` times a second for a while: the CPU time of all, and how many writes.
    ///
    /// # Errors
    ///
    /// If the thread has ended.
    pub(super) async fn turn(&mut self, changes: usize, time: Duration) -> anyhow::Result<(Duration, usize)> {
        let cpu = || usage::cpu_exact(std::process::id(), |name| name == NAME);
        let before = cpu()?;
        self.turns.send((changes, time)).context("the writing thread has ended")?;
        let writes = self.ended.recv().await.context("the writing thread has ended")?;
        Ok((cpu()?.saturating_sub(before), writes))
    }
}

fn write(streams: &[TcpStream], next: &mut usize, changes: usize, time: Duration) -> usize {
    let start = Instant::now();
    let mut writes = 0;
    for change in 0.. {
        let due = start + Duration::from_secs(1).mul_f64(f64::from(change) / changes as f64);
        if due >= start + time {
            break;
        }
        while Instant::now() < due {
            std::thread::park_timeout(due - Instant::now());
        }
        for _ in 0..AT_ONCE.min(streams.len()) {
            *next = (*next + 1) % streams.len();
            writes += usize::from((&streams[*next]).write_all(&[b'x'; BYTES]).is_ok());
        }
    }
    writes
}
