//! The proxy under attack, and a neighbour who only wants to be served.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use pillion_tests::support::app::{Reply, Seen, status};
use pillion_tests::support::{App, Process, pillion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// A body larger than all that a proxy keeps of one.
const BIG: usize = 4 << 20;
/// How often the neighbour asks.
const EVERY: Duration = Duration::from_millis(5);

/// A proxy with one worker, so that everybody shares it.
pub(crate) struct Proxy {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    _app: App,
    _folder: TempDir,
}

impl Proxy {
    /// Starts one; `before` is run by the shell that becomes it.
    pub(crate) async fn start(before: &str) -> Self {
        let big = Bytes::from(vec![b'a'; BIG]);
        let answer = move |seen: Seen| {
            let big = big.clone();
            async move {
                match seen.uri().path() {
                    "/big" => Reply::new(big),
                    "/hang" => std::future::pending().await,
                    _ => status(200),
                }
            }
        };
        let app = App::with(answer).await;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap(app.address).to_string()).expect("written");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before}; exec \"$@\""), "sh"]).arg(pillion());
        command.args(["proxy", "--workers", "1", "--admin", "127.0.0.1:0", "--envoy-config"]).arg(&file);
        let process = Process::spawn("proxy", command);
        let (address, admin) = (process.bound("web").await, process.bound("admin").await);
        Self { process, address, admin, _app: app, _folder: folder }
    }

    /// Memory in use, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Processor time so far, in ticks of 10 ms.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("it lives");
        let after_name = stat.rsplit(") ").next().expect("fields");
        let field = |n: usize| after_name.split(' ').nth(n).and_then(|text| text.parse::<u64>().ok());
        field(11).expect("utime") + field(12).expect("stime")
    }
}

fn bootstrap(app: SocketAddr) -> serde_json::Value {
    let address = |address: &str, port: u16| serde_json::json!({"socket_address": {"address": address, "port_value": port}});
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    serde_json::json!({"static_resources": {
        "listeners": [{
            "name": "web",
            "address": address("127.0.0.1", 0),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": kind("network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "web",
                    "request_headers_timeout": "2s",
                    "request_timeout": "3s",
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                        {"match": {"path": "/ok"}, "direct_response": {"status": 200}},
                        {"match": {"prefix": "/"}, "route": {"cluster": "app"}},
                    ]}]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": kind("http.router.v3.Router")},
                    }],
                },
            }]}],
        }],
        "clusters": [{
            "name": "app",
            "type": "STATIC",
            "circuit_breakers": {"thresholds": [{
                "max_connections": 2000, "max_pending_requests": 100_000, "max_requests": 100_000,
            }]},
            "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": address(&app.ip().to_string(), app.port())}},
            ]}]},
        }],
    }})
}

/// How long the neighbour's requests took.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) times: Vec<Duration>,
}

impl Served {
    /// What 99 of 100 requests do not exceed.
    pub(crate) fn p99(&self) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort();
        sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// A client on a connection of its own.
pub(crate) struct Neighbour(TcpStream);

impl Neighbour {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("the kernel takes it");
        stream.set_nodelay(true).expect("the socket is there");
        Self(stream)
    }

    /// Asks again and again for so long.
    pub(crate) async fn ask_for(&mut self, length: Duration) -> Served {
        let end = Instant::now() + length;
        let mut times = Vec::new();
        let mut ticks = tokio::time::interval(EVERY);
        while Instant::now() < end {
            ticks.tick().await;
            let begun = Instant::now();
            self.ask().await;
            times.push(begun.elapsed());
        }
        Served { times }
    }

    /// Asks once.
    ///
    /// # Panics
    ///
    /// If the answer is not 200, or there is none for 10 s.
    pub(crate) async fn ask(&mut self) {
        self.0.write_all(b"GET /ok HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("the connection is kept");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let read = timeout(Duration::from_secs(10), self.0.read_buf(&mut answer)).await;
            let read = read.expect("an answer").expect("the connection is kept");
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
}
