//! The client of HTTP/1: it sends what the case says and remembers every byte that comes back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::fixture::{Deed, Request, Step, Tls};
use super::http1::Responses;
use super::origin::in_chunks;
use super::tls::{self, Channel, Reader, Writer};

/// How patient a client is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// For an answer to come.
    pub(crate) answer: Duration,
    /// For something more to come, such as the connection's end.
    pub(crate) settle: Duration,
}

/// What one connection gave.
#[derive(Debug)]
pub(crate) struct Given {
    /// The client's port.
    pub(crate) port: u16,
    pub(crate) lines: Vec<String>,
    /// Final responses.
    pub(crate) answers: usize,
}

/// What has come so far.
#[derive(Clone, Debug)]
struct Incoming {
    bytes: Arc<Mutex<Vec<u8>>>,
    state: watch::Sender<(usize, Option<End>)>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

/// An open connection.
struct Connection {
    write: Writer,
    /// By TLS.
    told: Vec<String>,
    incoming: Incoming,
    methods: Vec<String>,
    pace: Pace,
    _reader: JoinSet<()>,
}

/// Sends requests one after another on one connection.
pub(crate) async fn requests(
    to: SocketAddr,
    tls: Option<&Tls>,
    requests: &[Request],
    tag: &str,
    pace: Pace,
) -> Given {
    let (port, channel, told) = match open(to, tls, pace).await {
        Ok(opened) => opened,
        Err(refused) => return refused,
    };
    let mut connection = Connection::new(channel, told, pace);
    for (index, request) in requests.iter().enumerate() {
        sleep(Duration::from_millis(request.after)).await;
        connection.methods.push(request.method().to_owned());
        connection.send(&bytes(request, tag)).await;
        if let Some(after) = request.gone_after {
            sleep(Duration::from_millis(after)).await;
            break;
        }
        if connection.wait(|responses| responses.complete > index).await.is_none() {
            break;
        }
    }
    let gone = requests.iter().any(|request| request.gone_after.is_some());
    connection.finish(port, gone).await
}

/// Sends bytes on one connection.
pub(crate) async fn raw(to: SocketAddr, tls: Option<&Tls>, steps: &[Step], tag: &str, pace: Pace) -> Given {
    let (port, channel, told) = match open(to, tls, pace).await {
        Ok(opened) => opened,
        Err(refused) => return refused,
    };
    let mut connection = Connection::new(channel, told, pace);
    let mut begun = 0;
    for step in steps {
        match step {
            Step::Send(text) => connection.send_text(&text.replace("{case}", tag)).await,
            Step::Do(deed) => connection.deed(deed, tag, &mut begun).await,
        }
    }
    connection.wait(|responses| responses.complete > begun).await;
    connection.finish(port, false).await
}

/// A connection, its port and what TLS told; or that there is none.
pub(crate) async fn open(
    to: SocketAddr,
    tls: Option<&Tls>,
    pace: Pace,
) -> Result<(u16, Channel, Vec<String>), Given> {
    let stream = TcpStream::connect(to).await.unwrap_or_else(|error| panic!("connect {to}: {error}"));
    stream.set_nodelay(true).expect("the socket is there");
    let port = stream.local_addr().map_or(0, |address| address.port());
    let opened = timeout(pace.answer, tls::connect(stream, tls)).await;
    match opened.unwrap_or_else(|_elapsed| Err(vec!["client got no end of a handshake".to_owned()])) {
        Ok((channel, told)) => Ok((port, channel, told)),
        Err(lines) => Err(Given { port, lines, answers: 0 }),
    }
}

/// A request as it goes over the wire.
fn bytes(request: &Request, tag: &str) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.path());
    if request.host() != "none" {
        head += &format!("host: {}\r\n", request.host());
    }
    head += &format!("x-case: {tag}\r\n");
    for header in &request.headers {
        head += &format!("{header}\r\n");
    }
    let body = request.body();
    if request.chunked {
        head += "transfer-encoding: chunked\r\n";
    } else if let Some(body) = &body {
        let more = usize::from(request.unfinished);
        head += &format!("content-length: {}\r\n", body.len() + more);
    }
    let mut bytes = (head + "\r\n").into_bytes();
    match body {
        Some(body) if request.chunked => {
            let mut chunks = in_chunks(&body, &request.trailers);
            if request.unfinished {
                chunks.truncate(chunks.len() - 5);
            }
            bytes.extend(chunks);
        }
        Some(body) => bytes.extend(body),
        None if request.chunked => bytes.extend(in_chunks(&[], &request.trailers)),
        None => {}
    }
    bytes
}

impl Connection {
    fn new(channel: Channel, told: Vec<String>, pace: Pace) -> Self {
        let (read, write) = channel.halves();
        let incoming = Incoming { bytes: Arc::default(), state: watch::Sender::new((0, None)) };
        let mut reader = JoinSet::new();
        reader.spawn(incoming.clone().keep(read));
        Self { write, told, incoming, methods: Vec::new(), pace, _reader: reader }
    }

    /// Sends; that the proxy no longer takes it shows in what comes back.
    async fn send(&mut self, bytes: &[u8]) {
        let sent = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        let _ = timeout(self.pace.answer, sent).await;
    }

    async fn send_text(&mut self, text: &str) {
        let method = text.split(' ').next().unwrap_or_default();
        if matches!(method, "HEAD" | "CONNECT" | "GET" | "POST") {
            self.methods.push(method.to_owned());
        }
        self.send(text.as_bytes()).await;
    }

    async fn deed(&mut self, deed: &Deed, tag: &str, begun: &mut usize) {
        if let Some(lines) = &deed.lines {
            let text = lines.replace("{case}", tag).replace("{empty}", "").replace('\n', "\r\n");
            self.send_text(&text).await;
        }
        if deed.times > 0 {
            self.send(deed.fill.repeat(deed.times).as_bytes()).await;
        }
        if deed.pause > 0 {
            sleep(Duration::from_millis(deed.pause)).await;
        }
        if deed.answer {
            let before = self.incoming.lock().len();
            let _ = self.wait_bytes(before.min(1)).await;
            let now = self.wait(|responses| responses.begun > *begun || !responses.lines.is_empty()).await;
            *begun = now.unwrap_or(*begun);
        }
        if deed.finish {
            let _ = self.write.shutdown().await;
        }
    }

    async fn wait_bytes(&self, more_than: usize) -> bool {
        let mut state = self.incoming.state.subscribe();
        let come = state.wait_for(|(count, end)| *count > more_than || end.is_some());
        timeout(self.pace.answer, come).await.is_ok()
    }

    /// Waits until enough has come; the number of complete responses then, or `None` if it does not.
    async fn wait(&self, enough: impl Fn(&Responses) -> bool) -> Option<usize> {
        let mut state = self.incoming.state.subscribe();
        let wait = async {
            loop {
                let (_, end) = *state.borrow_and_update();
                let responses = self.responses();
                if enough(&responses) {
                    return Some(responses.complete);
                }
                if end.is_some() || state.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout(self.pace.answer, wait).await.ok().flatten()
    }

    fn responses(&self) -> Responses {
        let ended = self.incoming.state.borrow().1.is_some();
        Responses::parse(&self.incoming.lock(), &self.methods, ended)
    }

    /// Waits for what may still come, and tells all.
    async fn finish(self, port: u16, gone: bool) -> Given {
        let mut state = self.incoming.state.subscribe();
        let settled =
            async { while state.borrow_and_update().1.is_none() && state.changed().await.is_ok() {} };
        if !gone {
            let _ = timeout(self.pace.settle, settled).await;
        }
        let Responses { lines, complete, .. } = self.responses();
        let end = match self.incoming.state.borrow().1 {
            _ if gone => "the client has gone away",
            None => "connection stays open",
            Some(End::Closed) => "connection closed by the proxy",
            Some(End::Reset) => "connection reset by the proxy",
        };
        let lines = lines.into_iter().chain([end.to_owned()]).map(|line| format!("client got {line}"));
        Given { port, lines: self.told.into_iter().chain(lines).collect(), answers: complete }
    }
}

impl Incoming {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep(self, mut from: Reader) {
        let mut chunk = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut chunk).await;
            let end = match read {
                Ok(0) => Some(End::Closed),
                Err(_) => Some(End::Reset),
                Ok(count) => {
                    self.lock().extend_from_slice(&chunk[..count]);
                    None
                }
            };
            let count = self.lock().len();
            self.state.send_replace((count, end));
            if end.is_some() {
                return;
            }
        }
    }
}
