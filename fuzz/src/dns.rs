//! Messages to a DNS server: over UDP, and over TCP behind their length.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// An input of a length that is a multiple of this goes over TCP as well.
const TCP_EVERY: usize = 16;
/// A question for the address of `a.mesh.internal.`; its first byte is the low one of an id.
const GOOD: &[u8] =
    b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04mesh\x08internal\x00\x00\x01\x00\x01";
/// Longest that a good question waits for its answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);
const TCP_TIME_MAX: Duration = Duration::from_millis(200);

/// Sends a message, and then a question, which must be answered.
pub(crate) async fn attempt(server: SocketAddr, input: &[u8]) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind("127.0.0.1:0").await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    // What is too large for a datagram goes over TCP only.
    let _too_large = socket.send(input).await;
    if input.len().is_multiple_of(TCP_EVERY) {
        over_tcp(server, input).await.map_err(failed)?;
    }
    let mut good = GOOD.to_vec();
    good[..2].copy_from_slice(b"\xf0\x0d");
    socket.send(&good).await.map_err(failed)?;
    let mut answer = vec![0; 65_535];
    let answered = async {
        loop {
            let bytes = socket.recv(&mut answer).await?;
            if bytes >= 12 && answer[..2] == good[..2] && answer[2] & 0x80 != 0 {
                return std::io::Result::Ok(());
            }
        }
    };
    match timeout(ANSWER_TIME_MAX, answered).await {
        Ok(answered) => answered.map_err(failed),
        Err(_elapsed) => Err("a question after it was not answered".to_owned()),
    }
}

async fn over_tcp(server: SocketAddr, input: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(input.len()).unwrap_or(u16::MAX);
    let sent = async {
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&input[..usize::from(length)]).await?;
        stream.read(&mut [0; 1024]).await
    };
    // It may answer, close, or say nothing.
    let _whatever = timeout(TCP_TIME_MAX, sent).await;
    Ok(())
}
