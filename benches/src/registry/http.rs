//! HTTP/1.1 with nothing in between: the client shares the machine with what it measures.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::door::{Door, Io};

/// Largest answer read.
const ANSWER_MAX: usize = 64 << 20;

/// One connection that is kept open.
pub(super) struct Client {
    stream: Box<dyn Io>,
    /// Lines that every request has.
    always: String,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Self::through(&Door::open(address)).await
    }

    pub(super) async fn through(door: &Door) -> anyhow::Result<Self> {
        let stream = door.connect("http/1.1").await?;
        let mut always = format!("host: {}\r\ncontent-type: application/json\r\n", door.address);
        if let Some(authorization) = door.authorization() {
            always += &format!("authorization: {authorization}\r\n");
        }
        Ok(Self { stream, always, buffer: Vec::new() })
    }

    /// Sends a request and reads the answer: status and body.
    pub(super) async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<(u16, String)> {
        self.send(method, path, body).await?;
        self.buffer.clear();
        let (head_end, length) = loop {
            if self.read_more().await? == 0 {
                bail!("{method} {path}: the connection was closed");
            }
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break (at + 4, content_length(&self.buffer[..at])?);
            }
        };
        while self.buffer.len() < head_end + length {
            if self.read_more().await? == 0 {
                bail!("{method} {path}: the answer ended early");
            }
        }
        let status = std::str::from_utf8(&self.buffer[..head_end])?.split(' ').nth(1).context("a status")?;
        let status = status.parse()?;
        Ok((status, String::from_utf8_lossy(&self.buffer[head_end..head_end + length]).into_owned()))
    }

    /// Sends a request whose answer is a stream, and hands over the connection.
    pub(super) async fn stream(mut self, path: &str) -> anyhow::Result<Box<dyn Io>> {
        self.send("GET", path, "").await?;
        Ok(self.stream)
    }

    async fn send(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        let (always, length) = (&self.always, body.len());
        let request = format!("{method} {path} HTTP/1.1\r\n{always}content-length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes()).await?;
        Ok(self.stream.flush().await?)
    }

    async fn read_more(&mut self) -> anyhow::Result<usize> {
        if self.buffer.len() > ANSWER_MAX {
            bail!("an answer of more than {ANSWER_MAX} bytes");
        }
        Ok(self.stream.read_buf(&mut self.buffer).await?)
    }
}

pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Ok(value.map_or(Ok(0), |value| value.trim().parse())?)
}
