//! The UDP and TCP loops.
//!
//! One task reads datagrams and answers those whose answer is known at once, in bursts without
//! waking in between; others are waited for aside. On TCP (RFC 7766) questions are pipelined and
//! answered as answers come in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::reply::{Answer, Code, encode, encode_refusal, relay};
use crate::wire::{Malformed, Question, Transport};
use crate::zone::{Outcome, Reply, Zone};

/// Answers on both sockets until `stop`. `name` is for logs.
pub async fn serve(
    name: &str,
    udp: UdpSocket,
    tcp: TcpListener,
    zone: Arc<dyn Zone>,
    stop: CancellationToken,
) {
    tokio::join!(
        serve_udp(name, Arc::new(udp), Arc::clone(&zone), stop.clone()),
        serve_tcp(name, tcp, zone, stop),
    );
}

async fn serve_udp(name: &str, socket: Arc<UdpSocket>, zone: Arc<dyn Zone>, stop: CancellationToken) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut waiting = JoinSet::new();
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = waiting.join_next() => continue,
            received = socket.recv_from(&mut buffer) => received,
        };
        let mut next = received;
        for _ in 0..BURST {
            match next {
                Ok((len, client)) => datagram(&socket, &buffer[..len], client, &zone, &mut waiting),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // ICMP errors of earlier answers are reported here; they concern nobody else.
                Err(error) => tracing::debug!(server = name, %error, "cannot receive"),
            }
            next = socket.try_recv_from(&mut buffer);
        }
    }
}

fn datagram(
    socket: &Arc<UdpSocket>,
    message: &[u8],
    client: SocketAddr,
    zone: &Arc<dyn Zone>,
    waiting: &mut JoinSet<()>,
) {
    match handle(message, client, Transport::Udp, zone, waiting.len()) {
        Handled::Nothing => {}
        // A full send buffer loses the answer, as the network may: the client asks again.
        Handled::Send(answer) => drop(socket.try_send_to(&answer, client)),
        Handled::Later(later) => {
            let socket = Arc::clone(socket);
            waiting.spawn(async move {
                let answer = later.finish().await;
                drop(socket.send_to(&answer, client).await);
            });
        }
    }
}

async fn serve_tcp(name: &str, listener: TcpListener, zone: Arc<dyn Zone>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                // Over the limit, newcomers are closed at once: UDP still answers them.
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
                let (zone, stop) = (Arc::clone(&zone), stop.clone());
                open.spawn(async move {
                    let served = stop.run_until_cancelled(connection(stream, client, zone)).await;
                    if let Some(Err(error)) = served {
                        tracing::debug!(%client, %error, "DNS connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(server = name, %error, "cannot accept a connection, waiting");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while open.join_next().await.is_some() {}
}

async fn connection(mut stream: TcpStream, client: SocketAddr, zone: Arc<dyn Zone>) -> io::Result<()> {
    let mut received = Vec::with_capacity(READ_CHUNK);
    let mut waiting: JoinSet<Vec<u8>> = JoinSet::new();
    let mut idle_end = tokio::time::Instant::now() + IDLE;
    loop {
        let mut answers = Vec::new();
        while waiting.len() < PIPELINE_MAX
            && let Some(message) = take_frame(&mut received)
        {
            match handle(&message, client, Transport::Tcp, &zone, waiting.len()) {
                Handled::Nothing => {}
                Handled::Send(answer) => push_frame(&mut answers, &answer),
                Handled::Later(later) => drop(waiting.spawn(later.finish())),
            }
            if answers.len() >= WRITE_CHUNK {
                break;
            }
        }
        if !answers.is_empty() {
            write(&mut stream, &answers).await?;
            idle_end = tokio::time::Instant::now() + IDLE;
            continue; // there may be more whole frames
        }
        tokio::select! {
            Some(answer) = waiting.join_next() => {
                if let Ok(answer) = answer {
                    push_frame(&mut answers, &answer);
                    write(&mut stream, &answers).await?;
                    idle_end = tokio::time::Instant::now() + IDLE;
                }
            }
            read = stream.read_buf(&mut received), if waiting.len() < PIPELINE_MAX => {
                if read? == 0 {
                    return finish(stream, waiting).await;
                }
            }
            () = sleep_until(idle_end), if waiting.is_empty() => return Ok(()),
        }
    }
}

/// The client has asked its last question: it still gets the answers under way.
async fn finish(mut stream: TcpStream, mut waiting: JoinSet<Vec<u8>>) -> io::Result<()> {
    while let Some(answer) = waiting.join_next().await {
        if let Ok(answer) = answer {
            let mut frame = Vec::new();
            push_frame(&mut frame, &answer);
            write(&mut stream, &frame).await?;
        }
    }
    stream.shutdown().await
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    match timeout(IDLE, stream.write_all(bytes)).await {
        Ok(written) => written,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answers")),
    }
}

/// Takes one whole message from the front of what was received: two bytes of length, then that many.
fn take_frame(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = usize::from(u16::from_be_bytes(*received.first_chunk()?));
    if received.len() < 2 + len {
        return None;
    }
    let message = received[2..2 + len].to_vec();
    received.drain(..2 + len);
    Some(message)
}

fn push_frame(out: &mut Vec<u8>, message: &[u8]) {
    // Answers are cut to 65535 bytes.
    if let Ok(len) = u16::try_from(message.len()) {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(message);
    }
}

enum Handled {
    Nothing,
    Send(Vec<u8>),
    Later(Later),
}

/// An answer under way, with the question it belongs to.
struct Later {
    message: Vec<u8>,
    client: SocketAddr,
    transport: Transport,
    answer: std::pin::Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl Later {
    async fn finish(self) -> Vec<u8> {
        let outcome = timeout(LATER_MAX, self.answer)
            .await
            .unwrap_or_else(|_| Outcome::Answer(Answer::code(Code::ServerFailure)));
        match Question::parse(&self.message, self.client, self.transport) {
            Ok(question) => send(&question, outcome),
            Err(_) => encode_refusal(&self.message, Code::ServerFailure),
        }
    }
}

fn handle(
    message: &[u8],
    client: SocketAddr,
    transport: Transport,
    zone: &Arc<dyn Zone>,
    waiting: usize,
) -> Handled {
    let question = match Question::parse(message, client, transport) {
        Ok(question) => question,
        Err(Malformed::Ignore) => return Handled::Nothing,
        Err(Malformed::Refuse(code)) => return Handled::Send(encode_refusal(message, code)),
    };
    if question.has_foreign_version() {
        return Handled::Send(encode(&question, &Answer::code(Code::BadVersion)));
    }
    match zone.answer(&question) {
        Reply::Now(outcome) => Handled::Send(send(&question, outcome)),
        Reply::Later(_) if waiting >= WAITING_MAX => {
            Handled::Send(encode(&question, &Answer::code(Code::ServerFailure)))
        }
        Reply::Later(answer) => {
            Handled::Later(Later { message: message.to_vec(), client, transport, answer })
        }
    }
}

fn send(question: &Question<'_>, outcome: Outcome) -> Vec<u8> {
    match outcome {
        Outcome::Answer(answer) => encode(question, &answer),
        Outcome::Relayed(message) => relay(question, message),
    }
}

const DATAGRAM_MAX: usize = 4096;
/// Datagrams read without giving other tasks a turn.
const BURST: usize = 64;
const CONNECTIONS_MAX: usize = 10_000;
const IDLE: Duration = Duration::from_secs(10);
const READ_CHUNK: usize = 1024;
const WRITE_CHUNK: usize = 64 * 1024;
/// Answers waited for per connection; further questions stay unread until one is done.
const PIPELINE_MAX: usize = 128;
/// Answers waited for over UDP; beyond, SERVFAIL.
const WAITING_MAX: usize = 4096;
const LATER_MAX: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
