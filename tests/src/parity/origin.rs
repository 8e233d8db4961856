//! The programs behind the proxy: they answer as the case says, and remember what they were sent.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::fixture::{Answer, End, Protocol, Reply, filled};
use super::http1::{Body, Framing, Head};
use super::origin_http2;
use super::seen::{body_line, header_lines};

/// Health checks that an origin fails which is well only later.
const LATE_CHECKS: u32 = 35;
/// How long a silent origin waits for the proxy to give up.
const HANG_MAX: Duration = Duration::from_secs(20);

/// What all origins of a file know of the cases that run, by their tag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scripts {
    by_tag: Arc<Mutex<HashMap<String, Script>>>,
    /// Requests of no case that get 503 first, on a connection.
    unwell: Arc<AtomicU32>,
}

#[derive(Debug, Default)]
struct Script {
    answers: Vec<Answer>,
    attempts: Vec<Attempt>,
}

/// One request as an origin saw it.
#[derive(Clone, Debug, Default)]
struct Attempt {
    origin: String,
    lines: Vec<String>,
    done: bool,
}

impl Scripts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Script>> {
        self.by_tag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, for a connection on which `count` requests of no case get 503 first.
    fn unwell(&self, count: u32) -> Self {
        Self { by_tag: Arc::clone(&self.by_tag), unwell: Arc::new(AtomicU32::new(count)) }
    }

    /// A case begins.
    pub(crate) fn begin(&self, tag: &str, answers: &[Answer]) {
        let script = Script { answers: answers.to_vec(), attempts: Vec::new() };
        self.lock().insert(tag.to_owned(), script);
    }

    /// A request has come; its number and how to answer it.
    pub(crate) fn attempt(&self, tag: &str, origin: &str) -> (usize, Reply) {
        let less = |left: u32| left.checked_sub(1);
        if tag.is_empty() && self.unwell.fetch_update(Relaxed, Relaxed, less).is_ok() {
            return (usize::MAX, Reply { status: Some(503), ..Reply::default() });
        }
        let mut scripts = self.lock();
        let script = scripts.entry(tag.to_owned()).or_default();
        let number = script.attempts.len();
        script.attempts.push(Attempt { origin: origin.to_owned(), ..Attempt::default() });
        let answer = script.answers.get(number).or_else(|| script.answers.last());
        (number, answer.map_or_else(Reply::default, Answer::reply))
    }

    /// Remembers something of an attempt.
    pub(crate) fn add(&self, tag: &str, number: usize, lines: impl IntoIterator<Item = String>) {
        self.change(tag, number, |attempt| attempt.lines.extend(lines));
    }

    /// Nothing more will be remembered of an attempt.
    pub(crate) fn done(&self, tag: &str, number: usize) {
        self.change(tag, number, |attempt| attempt.done = true);
    }

    fn change(&self, tag: &str, number: usize, change: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.lock().get_mut(tag).and_then(|script| script.attempts.get_mut(number)) {
            change(attempt);
        }
    }

    /// The case ends: what the origins saw, once they have seen all of it, at most `limit` from now.
    /// `at_once`: whose order means nothing.
    pub(crate) async fn end(&self, tag: &str, limit: Duration, at_once: bool) -> Vec<String> {
        let deadline = Instant::now() + limit;
        let is_done =
            |script: Option<&Script>| script.is_none_or(|script| script.attempts.iter().all(|one| one.done));
        while !is_done(self.lock().get(tag)) && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        let attempts = self.lock().remove(tag).unwrap_or_default().attempts;
        let mut by_origin: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
        for attempt in attempts {
            by_origin.entry(attempt.origin.clone()).or_default().push(attempt);
        }
        let mut lines = Vec::new();
        for (origin, mut attempts) in by_origin {
            if at_once {
                attempts.sort_by(|a, b| a.lines.cmp(&b.lines));
            }
            for (index, attempt) in attempts.into_iter().enumerate() {
                let number = index + 1;
                lines.extend(attempt.lines.into_iter().map(|line| format!("{origin} #{number} got {line}")));
                if !attempt.done {
                    lines.push(format!("{origin} #{number} got   no end"));
                }
            }
        }
        lines
    }
}

/// Binds an origin; it serves until `tasks` is dropped.
pub(crate) async fn start(
    name: &str,
    protocol: Protocol,
    scripts: &Scripts,
    tasks: &mut JoinSet<()>,
) -> std::io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (name, scripts) = (name.to_owned(), scripts.clone());
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = Vec::new();
            let (name, scripts) = (name.clone(), scripts.clone());
            let _ = stream.set_nodelay(true);
            connections.spawn(async move {
                match protocol {
                    Protocol::Http1 => while serve(&mut stream, &mut buffer, &name, &scripts, "").await {},
                    Protocol::Late => {
                        let unwell = scripts.unwell(LATE_CHECKS);
                        while serve(&mut stream, &mut buffer, &name, &unwell, "").await {}
                    }
                    Protocol::Once => {
                        serve(&mut stream, &mut buffer, &name, &scripts, "connection: close\r\n").await;
                    }
                    Protocol::Http2 => origin_http2::serve(stream, &name, &scripts).await,
                    Protocol::Echo => echo(&mut stream).await,
                }
            });
            while connections.try_join_next().is_some() {}
        }
    });
    Ok(port)
}

async fn echo(stream: &mut TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// One request over HTTP/1; whether another may follow. `more_headers` are sent with the answer.
async fn serve(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    name: &str,
    scripts: &Scripts,
    more_headers: &str,
) -> bool {
    let head = loop {
        if let Some(head) = Head::parse(buffer) {
            break head;
        }
        if !more(stream, buffer).await {
            return false;
        }
    };
    buffer.drain(..head.bytes);
    let tag = head.header("x-case").unwrap_or_default().to_owned();
    let (number, reply) = scripts.attempt(&tag, name);
    scripts.add(&tag, number, [head.first.clone()].into_iter().chain(header_lines(&head.headers)));
    let bodiless = head.first.starts_with("HEAD ");
    let mut goes_on = true;
    if reply.early {
        goes_on = answer(stream, &reply, name, bodiless, more_headers).await;
    }
    let whole = read_body(stream, buffer, &head, |line| scripts.add(&tag, number, line)).await;
    if whole && !reply.early {
        goes_on = answer(stream, &reply, name, bodiless, more_headers).await;
    }
    if reply.end == End::Hang && whole {
        let gone = timeout(HANG_MAX, more(stream, buffer)).await;
        let what = if gone.is_ok_and(|more| !more) { "  then the proxy closed" } else { "  then more" };
        scripts.add(&tag, number, [what.to_owned()]);
    }
    scripts.done(&tag, number);
    if whole && goes_on && reply.echo {
        echo(stream).await;
        return false;
    }
    if reply.end == End::Reset {
        reset(stream);
    }
    whole && goes_on && reply.end == End::Keep
}

/// Dropping the stream now sends RST.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    stream.read_buf(buffer).await.is_ok_and(|count| count > 0)
}

/// Reads a request's body; whether all of it came.
async fn read_body(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    head: &Head,
    see: impl FnOnce(Vec<String>),
) -> bool {
    let framing = head.framing(Framing::None);
    loop {
        let body = Body::parse(buffer, framing);
        let ended = !body.complete && !more(stream, buffer).await;
        if body.complete || ended {
            let mut lines = vec![body_line(&body.data, body.complete)];
            lines.extend(body.trailers.iter().map(|(name, value)| format!("  trailer {name}: {value}")));
            see(lines);
            buffer.drain(..body.bytes.min(buffer.len()));
            return body.complete;
        }
    }
}

/// Sends an answer; whether the connection can go on.
async fn answer(
    stream: &mut TcpStream,
    reply: &Reply,
    name: &str,
    bodiless: bool,
    more_headers: &str,
) -> bool {
    sleep(Duration::from_millis(reply.after)).await;
    if reply.nothing {
        return false;
    }
    let mut sent = stream.write_all(&head_bytes(reply, name, more_headers)).await;
    if reply.body_after > 0 {
        sleep(Duration::from_millis(reply.body_after)).await;
    }
    if sent.is_ok() && !bodiless {
        sent = stream.write_all(&body_bytes(reply, name)).await;
    }
    sent.is_ok()
}

/// What an answer's body holds.
pub(crate) fn reply_body(reply: &Reply, name: &str) -> Vec<u8> {
    let filled = reply.body_bytes.map(filled);
    let text = reply.body.as_ref().map(|text| text.clone().into_bytes());
    text.or(filled).unwrap_or_else(|| name.as_bytes().to_vec())
}

fn is_bodiless(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

fn head_bytes(reply: &Reply, name: &str, more_headers: &str) -> Vec<u8> {
    if let Some(raw) = &reply.raw {
        return raw.clone().into_bytes();
    }
    let status = reply.status.unwrap_or(200);
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n{more_headers}");
    for header in &reply.headers {
        head += &format!("{header}\r\n");
    }
    if reply.chunked {
        head += "transfer-encoding: chunked\r\n";
    } else if !is_bodiless(status) {
        head += &format!("content-length: {}\r\n", reply_body(reply, name).len());
    }
    (head + "\r\n").into_bytes()
}

fn body_bytes(reply: &Reply, name: &str) -> Vec<u8> {
    if reply.raw.is_some() || is_bodiless(reply.status.unwrap_or(200)) {
        return Vec::new();
    }
    let body = reply_body(reply, name);
    if reply.chunked { in_chunks(&body, &reply.trailers) } else { body }
}

/// A body in one chunk, with trailers.
pub(crate) fn in_chunks(body: &[u8], trailers: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !body.is_empty() {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n");
    for trailer in trailers {
        bytes.extend_from_slice(format!("{trailer}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
