//! Passes questions for other zones on to the resolvers of this machine.
//!
//! Every resolver is asked, one a little after the other, and the first usable answer wins. Each
//! question goes out from a port and with an id of its own, so that answers are hard to forge.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use hickory_proto::op::ResponseCode;

use crate::answer::Answer;
use crate::encode::TRUNCATED;
use crate::note::Reason;
use crate::question::{HEADER, Question, Transport};
use crate::zone::{Outcome, Reply};

/// Asks other resolvers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Forwarder {
    resolvers: std::sync::Arc<[SocketAddr]>,
}

impl Forwarder {
    /// A forwarder to these resolvers, in order of preference.
    pub fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers: resolvers.into() }
    }

    /// The resolvers of a `resolv.conf`, without those that are `ourselves`.
    pub fn from_resolv_conf(text: &str, ourselves: &[SocketAddr]) -> Self {
        let resolvers = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
            .map(|ip| SocketAddr::new(ip, 53))
            .filter(|resolver| !ourselves.contains(resolver))
            .collect();
        Self::new(resolvers)
    }

    /// The resolvers asked.
    pub fn resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    /// Passes a question on. Without a resolver, and when none answers, SERVFAIL.
    pub fn forward(&self, question: &Question<'_>) -> Reply {
        if self.resolvers.is_empty() {
            return failure("no other resolver is configured").into();
        }
        let (this, message, transport) = (self.clone(), question.message().to_vec(), question.transport);
        let end = question.end();
        Reply::Later(Box::pin(async move {
            match this.race(message, end, transport).await {
                Some(answer) => Outcome::Relayed(answer),
                None => Outcome::Answer(failure("no other resolver answered")),
            }
        }))
    }

    async fn race(&self, message: Vec<u8>, end: usize, transport: Transport) -> Option<Vec<u8>> {
        let mut asked = JoinSet::new();
        for (turn, resolver) in self.resolvers.iter().copied().take(RESOLVERS_MAX).enumerate() {
            let message = message.clone();
            asked.spawn(async move {
                sleep(HEAD_START * u32::try_from(turn).unwrap_or(u32::MAX)).await;
                let answer = ask(resolver, message, end, transport).await;
                answer.inspect_err(|error| tracing::debug!(%resolver, %error, "a resolver did not answer"))
            });
        }
        let mut fallback = None;
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(answer)) if is_final(&answer) => return Some(answer),
                Ok(Ok(answer)) => fallback = Some(answer),
                _ => {}
            }
        }
        fallback
    }
}

fn failure(text: &'static str) -> Answer {
    Answer { recursion_available: true, ..Answer::code(ResponseCode::ServFail) }
        .noting(Reason::NoReachableAuthority, text)
}

/// NOERROR and NXDOMAIN end the race; a failing or refusing resolver does not.
fn is_final(answer: &[u8]) -> bool {
    matches!(answer[3] & 0x0f, 0 | 3)
}

async fn ask(
    resolver: SocketAddr,
    mut message: Vec<u8>,
    end: usize,
    transport: Transport,
) -> io::Result<Vec<u8>> {
    let id = fastrand::u16(..).to_be_bytes();
    message[..2].copy_from_slice(&id);
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
    if transport == Transport::Udp {
        return timeout(ANSWER_MAX, ask_udp(resolver, &message, end)).await.map_err(|_| late())?;
    }
    let answer = timeout(ANSWER_MAX, ask_udp(resolver, &message, end)).await.map_err(|_| late())??;
    if answer[2] & TRUNCATED == 0 {
        return Ok(answer);
    }
    timeout(ANSWER_MAX, ask_tcp(resolver, &message, end)).await.map_err(|_| late())?
}

async fn ask_udp(resolver: SocketAddr, message: &[u8], end: usize) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if answers(&buffer[..len], message, end) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(resolver: SocketAddr, message: &[u8], end: usize) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    stream.write_all(&frame).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, message, end) {
        return Ok(answer);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
}

/// Whether `answer` is a response to `message`: same id, same question.
fn answers(answer: &[u8], message: &[u8], end: usize) -> bool {
    let same_question = match answer.get(HEADER..end) {
        Some(question) => question.eq_ignore_ascii_case(&message[HEADER..end]),
        // Failures may come without the question.
        None => answer.len() >= HEADER && answer[4..6] == [0, 0] && answer[3] & 0x0f != 0,
    };
    answer.len() >= HEADER && answer[..2] == message[..2] && answer[2] & RESPONSE != 0 && same_question
}

/// So much later the next resolver is asked, too.
const HEAD_START: Duration = Duration::from_millis(50);
const RESOLVERS_MAX: usize = 4;
const ANSWER_MAX: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 65_535;
/// QR, in the third byte of a message.
const RESPONSE: u8 = 0x80;
