//! DNS questions, by hand.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one record.
    Records,
    /// There is no such name, or it has no records.
    Negative,
    /// The server says that it cannot say.
    ServerFailure,
    /// Nothing, for as long as was waited, or refused by the kernel.
    Nothing,
}

/// Asks for the A records of `name`, once.
pub(super) async fn ask(server: SocketAddr, name: &str, wait: Duration) -> anyhow::Result<Answer> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    let mut question = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let mut answer = [0; 1500];
    let asked = async {
        socket.send(&question).await?;
        socket.recv(&mut answer).await
    };
    let Ok(Ok(length)) = tokio::time::timeout(wait, asked).await else { return Ok(Answer::Nothing) };
    Ok(read(&answer[..length]))
}

fn read(answer: &[u8]) -> Answer {
    let (Some(flags), Some(count)) = (answer.get(3), answer.get(6..8)) else { return Answer::Nothing };
    match flags & 0x0f {
        0 if count != [0, 0] => Answer::Records,
        0 | 3 => Answer::Negative,
        _ => Answer::ServerFailure,
    }
}
