//! Asks a DNS server, as an application's resolver would.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer over UDP that we take.
const ANSWER_BYTES_MAX: usize = 4096;

/// What a server answered.
pub(super) struct Answer {
    /// The response code: `NoError`, `NXDomain`, …
    pub(super) code: ResponseCode,
    /// The addresses of A records.
    pub(super) addresses: Vec<Ipv4Addr>,
}

/// Asks `server` for the A records of `name`.
pub(super) async fn addresses(server: SocketAddr, name: &str) -> anyhow::Result<Answer> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(server, name)).await;
    answer
        .unwrap_or_else(|_elapsed| Err(anyhow::anyhow!("no answer within {ANSWER_TIMEOUT:?}")))
        .with_context(|| format!("ask {server} for {name}"))
}

async fn ask(server: SocketAddr, name: &str) -> anyhow::Result<Answer> {
    let id = fastrand::u16(..);
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(Name::from_ascii(format!("{name}."))?, RecordType::A));
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
    socket.connect(server).await?;
    socket.send(&question.to_vec()?).await?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    let length = socket.recv(&mut buffer).await?;
    let answer = Message::from_vec(&buffer[..length])?;
    anyhow::ensure!(answer.metadata.id == id, "the answer is for another question");
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    let addresses = answer.answers.iter().filter_map(|record| address(&record.data)).collect();
    Ok(Answer { code: answer.metadata.response_code, addresses })
}
