//! What a proxy costs that carries nothing: its start, its clusters, and connections that are idle.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::configuration::{Carried, Hop, Role, Tls};
use super::run::free;
use super::server::{Kind, Programs, Server};
use crate::report::{Budget, Report};

/// For the report.
const CLUSTERS: &str = "clusters that nobody asks for";
const IDLE: &str = "idle mutual-TLS connections";
/// How many clusters.
const COUNTS: [usize; 3] = [10, 1000, 10_000];
/// How many connections: both ends of each are descriptors, but of different processes.
const CONNECTIONS: usize = 4000;
/// Opened at the same time.
const AT_ONCE: usize = 32;
/// A proxy may still be at work when it begins to accept.
const SETTLE: Duration = Duration::from_secs(1);

/// Those whose name contains `filter`.
///
/// # Errors
///
/// If ours does not run.
pub(super) fn all(
    report: &mut Report,
    programs: &Programs,
    origin: SocketAddr,
    tls: &Tls,
    folder: &Path,
    filter: &str,
) -> anyhow::Result<()> {
    if CLUSTERS.contains(filter) {
        clusters(report, programs, origin, folder)?;
    }
    if IDLE.contains(filter) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for (name, protocol, most) in [("HTTP/1.1", None, 32.0), ("HTTP/2", Some(&b"h2"[..]), 48.0)] {
            for kind in [Kind::Pillion, Kind::Envoy, Kind::HaProxy] {
                eprintln!("{IDLE}: {name}: {}", kind.name());
                let hop = hop(origin, Role::Receiver, 0)?;
                let folder = folder.join(format!("idle-{name}-{}", kind.name()).replace('/', "-"));
                let server = match Server::start(kind, programs, &hop, Some(tls), &folder) {
                    Err(error) if kind != Kind::Pillion => {
                        missing(kind, &error);
                        continue;
                    }
                    server => server?,
                };
                // The first connections bring memory that the others share.
                let first = runtime.block_on(connect(hop.listen, tls, protocol, CONNECTIONS / 10))?;
                std::thread::park_timeout(SETTLE);
                let before = server.memory()?;
                let rest = runtime.block_on(connect(hop.listen, tls, protocol, CONNECTIONS))?;
                std::thread::park_timeout(SETTLE);
                let each = server.memory()?.saturating_sub(before) as f64 / CONNECTIONS as f64 / 1024.0;
                drop((first, rest));
                let budget = (kind == Kind::Pillion).then_some(Budget::AtMost(most));
                report.row(format!("{IDLE}: {}: {name}", kind.name()), each, "KiB", budget);
            }
        }
    }
    Ok(())
}

fn missing(kind: Kind, error: &anyhow::Error) {
    eprintln!("\n*** {} IS MISSING: nothing is held against it: {error:#}\n", kind.name());
}

fn hop(origin: SocketAddr, role: Role, clusters: usize) -> anyhow::Result<Hop> {
    Ok(Hop { listen: free()?, to: origin, role, carried: Carried::Http1, once: false, clusters })
}

fn clusters(
    report: &mut Report,
    programs: &Programs,
    origin: SocketAddr,
    folder: &Path,
) -> anyhow::Result<()> {
    for kind in [Kind::Pillion, Kind::Envoy] {
        let ours = |budget: f64| (kind == Kind::Pillion).then_some(Budget::AtMost(budget));
        let mut last: Option<(usize, u64)> = None;
        for count in COUNTS {
            eprintln!("{CLUSTERS}: {count}: {}", kind.name());
            let hop = hop(origin, Role::Plain, count)?;
            let folder = folder.join(format!("clusters-{count}-{}", kind.name()));
            let server = match Server::start(kind, programs, &hop, None, &folder) {
                Err(error) if kind != Kind::Pillion => {
                    missing(kind, &error);
                    return Ok(());
                }
                server => server?,
            };
            std::thread::park_timeout(SETTLE);
            let memory = server.memory()?;
            let what = |what: &str| format!("{CLUSTERS}: {}: {count}: {what}", kind.name());
            let start = server.start.as_secs_f64() * 1e3;
            report.row(what("start until it accepts"), start, "ms", ours(150.0).filter(|_| count == 1000));
            report.row(what("memory"), memory as f64 / f64::from(1 << 20), "MiB", None);
            if let Some((fewer, less)) = last {
                let each = memory.saturating_sub(less) as f64 / (count - fewer) as f64 / 1024.0;
                report.row(what("memory of each further one"), each, "KiB", ours(4.0));
            }
            last = Some((count, memory));
        }
    }
    Ok(())
}

type Connection = tokio_rustls::client::TlsStream<TcpStream>;

/// Opens so many connections, each of which has carried a request (over HTTP/1.1) or said hello.
async fn connect(
    to: SocketAddr,
    tls: &Tls,
    protocol: Option<&[u8]>,
    count: usize,
) -> anyhow::Result<Vec<Connection>> {
    let mut roots = RootCertStore::empty();
    for root in tls.read_roots()? {
        roots.add(root)?;
    }
    let (chain, key) = tls.read_leaf()?;
    let mut config = ClientConfig::builder_with_provider(pillion_net::tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    let connector = TlsConnector::from(Arc::new(config));
    let mut connections = Vec::new();
    while connections.len() < count {
        let opening = (0..AT_ONCE.min(count - connections.len())).map(|_| open(to, &connector));
        for opened in futures_util::future::join_all(opening).await {
            connections.push(opened.context("open a connection")?);
        }
    }
    Ok(connections)
}

async fn open(to: SocketAddr, connector: &TlsConnector) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect(to).await?;
    let mut stream = connector.connect(Ipv4Addr::LOCALHOST.into(), stream).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    // The preface and empty SETTINGS (RFC 9113 section 3.4), which the server answers with its own.
    let hello: &[u8] = if http2 {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
    } else {
        b"GET /0 HTTP/1.1\r\nhost: bench\r\n\r\n"
    };
    stream.write_all(hello).await?;
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).await?;
    ensure!(http2 || answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
    Ok(stream)
}
