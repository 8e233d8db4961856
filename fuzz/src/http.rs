//! Bytes to a proxy that routes and authorises, over HTTP/1 and HTTP/2.
//!
//! Whatever is sent, the application behind it must never be asked for what the policy denies, nor get
//! a head that is not well formed.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use pillion_proxy::admin::AdminOptions;
use pillion_proxy::{Options, StaticProxy, static_mode};
use pillion_xds::bootstrap::read_bootstrap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long an answer is waited for.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(300);
/// What one connection may give the application.
const SEEN_BYTES_MAX: usize = 256 << 10;

/// A proxy in this process, and an application that remembers what it was asked.
pub(crate) struct Proxy {
    _running: StaticProxy,
    address: SocketAddr,
    wrong: Arc<Mutex<Option<String>>>,
    _application: JoinSet<()>,
}

impl Proxy {
    /// Starts both.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a port")?;
        let application = listener.local_addr()?;
        let bootstrap = read_bootstrap(&bootstrap(application.port()))
            .map_err(|refused| anyhow::anyhow!("{:?}", refused.problems))?;
        let options = Options { workers: NonZeroUsize::MIN, ..Options::default() };
        let running = static_mode(bootstrap, &options, AdminOptions::default())?;
        let address = running.runtime.bound("web").context("the listener is bound")?;
        let wrong = Arc::<Mutex<Option<String>>>::default();
        let told = Arc::clone(&wrong);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _peer)) = listener.accept().await {
                connections.spawn(application_of(stream, Arc::clone(&told)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { _running: running, address, wrong, _application: tasks })
    }

    /// Sends bytes, and says what went wrong behind the proxy.
    pub(crate) async fn attempt(&self, input: &[u8]) -> Result<(), String> {
        let mut stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let exchange = async {
            stream.write_all(input).await?;
            stream.shutdown().await?;
            let mut answer = vec![0; 16 << 10];
            while stream.read(&mut answer).await? > 0 {}
            std::io::Result::Ok(())
        };
        // Closed early, or no answer in time: both are for the proxy to decide.
        let _ended = timeout(ANSWER_TIME_MAX, exchange).await;
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// Answers whatever comes, and looks at it.
async fn application_of(mut stream: TcpStream, wrong: Arc<Mutex<Option<String>>>) {
    let mut seen = Vec::new();
    while seen.len() < SEEN_BYTES_MAX && stream.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {
        if !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            continue;
        }
        if let Err(why) = look(&seen) {
            let what = format!("{why}: {:?}", String::from_utf8_lossy(&seen));
            wrong.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        }
        // One answer, and the connection is done.
        let _sent =
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
}

/// The head that the application got is one that nobody can read in two ways.
fn look(bytes: &[u8]) -> Result<(), &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(_)) = request.parse(bytes) else { return Err("no head") };
    let path = request.path.unwrap_or_default();
    if path.split(['?', '#']).next().is_some_and(|path| path.starts_with("/admin")) {
        return Err("the policy denies this");
    }
    let count = |name: &str| request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name)).count();
    if count("content-length") + count("transfer-encoding") > 1 {
        return Err("two lengths");
    }
    if count("host") != 1 {
        return Err("not one host");
    }
    Ok(())
}

fn bootstrap(application: u16) -> Value {
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let denied =
        json!({"permissions": [{"url_path": {"path": {"prefix": "/admin"}}}], "principals": [{"any": true}]});
    let regex = json!({"permissions": [{"header": {"name": "x-a", "string_match": {"safe_regex": {"regex": "(a|b)*c"}}}}], "principals": [{"any": true}]});
    json!({"static_resources": {
        "listeners": [{"name": "web", "address": address(0), "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": kind("network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "web",
                "normalize_path": true,
                "merge_slashes": true,
                "path_with_escaped_slashes_action": "REJECT_REQUEST",
                "stream_idle_timeout": "1s",
                "upgrade_configs": [{"upgrade_type": "websocket"}],
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                    {"match": {"path": "/exact"}, "route": {"cluster": "app"}},
                    {"match": {"safe_regex": {"regex": "/r[0-9]+/.*"}}, "route": {"cluster": "app", "prefix_rewrite": "/a"}},
                    {"match": {"prefix": "/q", "query_parameters": [{"name": "b"}]}, "redirect": {"path_redirect": "/x"}},
                    {"match": {"prefix": "/"}, "route": {"cluster": "app"}},
                ]}]},
                "http_filters": [
                    {"name": "envoy.filters.http.rbac", "typed_config": {
                        "@type": kind("http.rbac.v3.RBAC"),
                        "rules": {"action": "DENY", "policies": {"admin": denied, "regex": regex}},
                    }},
                    {"name": "envoy.filters.http.router", "typed_config": {"@type": kind("http.router.v3.Router")}},
                ],
            },
        }]}]}],
        "clusters": [{"name": "app", "type": "STATIC", "load_assignment": {"cluster_name": "app", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(application)}}]},
        ]}}],
    }})
}
