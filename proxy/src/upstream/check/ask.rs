//! One question to one endpoint: HTTP, gRPC, or bytes on a connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use pillion_model::health_check::{HealthCheck, HealthChecker, HttpHealthCheck};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::handshake::{LocalExecutor, http1_builder, http2_builder};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, open};
use crate::upstream::io::Io;
use crate::upstream::state::{Address, ClusterState, EndpointState};
use crate::upstream::tls::Transport;
use crate::upstream::worker::Worker;

/// What a check found, and why, for people.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is well.
    Well,
    /// It says itself that it is not.
    No(String),
    /// It could not be asked, or did not answer as it should: counted.
    Failure(String),
}

/// Asks one endpoint, again and again.
pub(super) struct Asker {
    question: Question,
    timeout: Duration,
    reuse: bool,
    address: Address,
    state: Arc<ClusterState>,
    transport: Arc<Transport>,
    /// Runs the connections; their tasks end with it.
    worker: Rc<Worker>,
    client: Option<Client>,
}

enum Question {
    Http { request: Request<Full<Bytes>>, check: HttpHealthCheck },
    Grpc { request: Request<Full<Bytes>> },
    Tcp { send: Vec<u8>, receive: Vec<Vec<u8>> },
}

enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Asker {
    pub(super) fn new(
        cluster: &Cluster,
        endpoint: &Arc<EndpointState>,
        transport: Arc<Transport>,
        check: &HealthCheck,
    ) -> Self {
        Self {
            question: Question::of(&check.checker, check.timeout, cluster.name(), transport.is_tls()),
            timeout: check.timeout,
            reuse: check.reuse_connection,
            address: endpoint.address.clone(),
            state: Arc::clone(&cluster.state),
            transport,
            worker: Rc::new(Worker::new(tokio::sync::watch::channel(Arc::default()).1)),
            client: None,
        }
    }

    /// Asks once.
    pub(super) async fn ask(&mut self) -> Found {
        let found = tokio::time::timeout(self.timeout, self.once()).await;
        let found = found.unwrap_or_else(|_| Found::Failure(format!("no answer within {:?}", self.timeout)));
        // An answer that says no came over a connection that works.
        if !self.reuse || matches!(found, Found::Failure(_)) {
            self.client = None;
        }
        found
    }

    async fn once(&mut self) -> Found {
        let outcome = match &self.question {
            Question::Tcp { send, receive } => match self.open().await {
                Ok(stream) => exchange(stream, send, receive).await,
                Err(reason) => Err(reason),
            }
            .map(|()| Found::Well),
            Question::Http { request, check } => {
                let (request, check) = (request.clone(), check.clone());
                self.answer(request, check.http2).await.map(|answer| answer.judge(&check))
            }
            Question::Grpc { request } => {
                let request = request.clone();
                self.answer(request, true).await.map(|answer| answer.judge_grpc())
            }
        };
        outcome.unwrap_or_else(Found::Failure)
    }

    async fn answer(&mut self, mut request: Request<Full<Bytes>>, http2: bool) -> Result<Answer, String> {
        let mut client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.connect(http2).await?,
        };
        if matches!(client, Client::Http1(_)) {
            to_origin_form(&mut request);
        }
        let response = client.send(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        self.client = Some(client);
        Ok(Answer { head, body: body.to_bytes(), trailers })
    }

    async fn open(&self) -> Result<Io, String> {
        let opened = open(&self.address, &self.transport, &self.state.stats).await;
        opened.map(Io::uncounted).map_err(|error| text(&error))
    }

    async fn connect(&self, http2: bool) -> Result<Client, String> {
        let stream = self.open().await?;
        let http2 = match stream.tls().and_then(|session| session.alpn_protocol()) {
            Some(b"h2") => true,
            Some(b"http/1.1") => false,
            _ => http2,
        };
        let broken = |error: hyper::Error| error.to_string();
        let stream = TokioIo::new(stream);
        if http2 {
            let executor = LocalExecutor(Rc::clone(&self.worker));
            let (send, driver) = http2_builder(executor).handshake(stream).await.map_err(broken)?;
            self.worker.spawn(async move { drop(driver.await) });
            return Ok(Client::Http2(send));
        }
        let (send, driver) = http1_builder().handshake(stream).await.map_err(broken)?;
        self.worker.spawn(async move { drop(driver.await) });
        Ok(Client::Http1(send))
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.worker.end();
    }
}

impl Client {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(send) => send.is_closed(),
            Self::Http2(send) => send.is_closed(),
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<http::Response<Incoming>> {
        match self {
            Self::Http1(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
            Self::Http2(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
        }
    }
}

impl Question {
    fn of(checker: &HealthChecker, timeout: Duration, cluster: &str, tls: bool) -> Self {
        let or_cluster = |host: &str| if host.is_empty() { cluster.to_owned() } else { host.to_owned() };
        match checker {
            HealthChecker::Tcp { send, receive } => {
                Self::Tcp { send: send.clone(), receive: receive.clone() }
            }
            HealthChecker::Http(check) => {
                let mut request =
                    request(&check.method, &or_cluster(&check.host), &check.path, tls, Bytes::new());
                for (name, value) in &check.headers {
                    // Read by the decoder: these are names and values.
                    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value))
                    {
                        request.headers_mut().append(name, value);
                    }
                }
                Self::Http { request, check: check.clone() }
            }
            HealthChecker::Grpc { service, authority } => {
                let message = HealthCheckRequest { service: service.clone() }.encode_to_vec();
                let mut body = BytesMut::with_capacity(GRPC_PREFIX + message.len());
                body.put_u8(0); // not compressed
                body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
                body.put_slice(&message);
                let path = "/grpc.health.v1.Health/Check";
                let mut request = request("POST", &or_cluster(authority), path, tls, body.freeze());
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                let limit = format!("{}m", timeout.as_millis());
                if let Ok(limit) = HeaderValue::try_from(limit) {
                    request.headers_mut().insert("grpc-timeout", limit);
                }
                request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
                Self::Grpc { request }
            }
        }
    }
}

/// A request with an absolute URI, as HTTP/2 needs it.
fn request(method: &str, host: &str, path: &str, tls: bool, body: Bytes) -> Request<Full<Bytes>> {
    let scheme = if tls { "https" } else { "http" };
    // A cluster's name need not be a host.
    let host = if host.parse::<http::uri::Authority>().is_ok() { host } else { "health-check" };
    let built = Request::builder()
        .method(method)
        .uri(format!("{scheme}://{host}{path}"))
        .header(USER_AGENT, "Envoy/HC")
        .body(Full::new(body.clone()));
    built.unwrap_or_else(|_| Request::new(Full::new(body)))
}

/// As HTTP/1 has it: the path in the first line, the host in its header.
fn to_origin_form(request: &mut Request<Full<Bytes>>) {
    let host = request.uri().authority().and_then(|host| HeaderValue::try_from(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if let Ok(path) = path.parse() {
        *request.uri_mut() = path;
    }
}

/// An answer, read to its end.
struct Answer {
    head: http::response::Parts,
    body: Bytes,
    trailers: http::HeaderMap,
}

impl Answer {
    fn judge(&self, check: &HttpHealthCheck) -> Found {
        let code = self.head.status.as_u16();
        let reason = || format!("status {code}");
        if self.head.headers.contains_key(IMMEDIATE_FAIL) {
            return Found::No(format!("status {code} with {IMMEDIATE_FAIL}"));
        }
        if check.expected.iter().any(|range| range.contains(&code)) {
            Found::Well
        } else if check.retriable.iter().any(|range| range.contains(&code)) {
            Found::Failure(reason())
        } else {
            Found::No(reason())
        }
    }

    fn judge_grpc(&self) -> Found {
        if self.head.status != http::StatusCode::OK {
            return Found::No(format!("status {}", self.head.status.as_u16()));
        }
        let status = self.trailers.get(GRPC_STATUS).or_else(|| self.head.headers.get(GRPC_STATUS));
        if status.is_none_or(|status| status != "0") {
            return Found::No(format!("gRPC status {status:?}"));
        }
        let message = self.body.get(GRPC_PREFIX..).map(HealthCheckResponse::decode);
        match message {
            Some(Ok(message)) if message.status == SERVING => Found::Well,
            Some(Ok(message)) => Found::No(format!("serving status {}", message.status)),
            _ => Found::No("the answer is no HealthCheckResponse".to_owned()),
        }
    }
}

/// Sends, and looks for each part behind the one before.
async fn exchange(mut stream: Io, send: &[u8], receive: &[Vec<u8>]) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(send).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut got = Vec::new();
    while !are_found(&got, receive) {
        if got.len() >= BODY_MAX {
            return Err(format!("the answer is not in its first {BODY_MAX} bytes"));
        }
        if stream.read_buf(&mut got).await.map_err(failed)? == 0 {
            return Err("closed before the answer was there".to_owned());
        }
    }
    Ok(())
}

fn are_found(mut bytes: &[u8], parts: &[Vec<u8>]) -> bool {
    parts.iter().all(|part| {
        let at = bytes.windows(part.len().max(1)).position(|window| window == &part[..]);
        at.is_some_and(|at| {
            bytes = &bytes[at + part.len()..];
            true
        })
    })
}

fn text(error: &ConnectError) -> String {
    if error.detail.is_empty() { format!("{:?}", error.reset) } else { error.detail.to_string() }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Of `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;
/// Compressed flag and length before a gRPC message.
const GRPC_PREFIX: usize = 5;
const GRPC_STATUS: &str = "grpc-status";
/// By which an endpoint says that it wants no more traffic.
const IMMEDIATE_FAIL: &str = "x-envoy-immediate-health-check-fail";
/// Bytes read of an answer.
const BODY_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_one_behind_the_other() {
        let parts =
            |texts: &[&str]| -> Vec<Vec<u8>> { texts.iter().map(|text| text.as_bytes().to_vec()).collect() };
        for (bytes, wanted, want) in [
            ("+PONG\r\n", &["PONG"][..], true),
            ("abc", &["a", "c"], true),
            ("abc", &["c", "a"], false),
            ("aa", &["a", "a"], true),
            ("a", &["a", "a"], false),
            ("", &[], true),
            ("", &["a"], false),
        ] {
            assert_eq!(are_found(bytes.as_bytes(), &parts(wanted)), want, "{bytes} {wanted:?}");
        }
    }
}
