//! Durable registrations into etcd: a real etcd, a real registry on it, and clients that register
//! instances over HTTP, many in each request.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Arguments, server};
use crate::report::{Budget, Report};
use crate::usage;

/// How long a program may take to start.
const START: Duration = Duration::from_secs(20);
/// Services that the instances belong to.
const SERVICES: usize = 100;

/// Connections that register at the same time.
const CONNECTIONS: usize = 16;
/// Instances in one request.
const BATCH: usize = 200;

/// A program that ends with the bench.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which its clients have noticed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures, and adds rows to the report.
///
/// # Errors
///
/// If etcd or the registry do not start, or a registration is refused.
pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let (etcd, client) = start_etcd(&folder.path().join("etcd")).await?;
    let pillion = server::binary(arguments)?;
    let (registry, api) = start_registry(&pillion, &folder.path().join("registry"), client)?;
    // The services are there before anything is measured: their indexes are given one by one.
    register(api, SERVICES, 0).await?;
    let before = [usage::cpu(etcd.0.id())?, usage::cpu(registry.0.id())?, usage::cpu(std::process::id())?];
    let (revision, begin) = (etcd_revision(client).await?, Instant::now());
    register(api, arguments.instances, 1).await?;
    let took = begin.elapsed();
    let after = [usage::cpu(etcd.0.id())?, usage::cpu(registry.0.id())?, usage::cpu(std::process::id())?];
    let [of_etcd, of_registry, of_us] = [0, 1, 2].map(|n| (after[n] - before[n]).as_secs_f64());
    let (count, each) = (arguments.instances as f64, 1e6 / arguments.instances as f64);
    report.row(
        "etcd: durable registrations",
        count / took.as_secs_f64(),
        "1/s",
        Some(Budget::AtLeast(8000.0)),
    );
    let two_cores = 2.0 * count / (of_etcd + of_registry + of_us);
    report.row("etcd: the same, by the CPU of all three on two cores", two_cores, "1/s", None);
    report.row("etcd: CPU of etcd per registration", of_etcd * each, "µs", Some(Budget::AtMost(16.0)));
    report.row("etcd: CPU of the registry per registration", of_registry * each, "µs", None);
    report.row("etcd: CPU of the clients per registration", of_us * each, "µs", None);
    let transactions = etcd_revision(client).await?.saturating_sub(revision).max(1);
    report.row("etcd: registrations per transaction", count / transactions as f64, "", None);
    Ok(())
}

/// Registers so many instances.
async fn register(api: SocketAddr, instances: usize, round: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let next = Arc::clone(&next);
        clients.spawn(async move {
            let mut connection = connect(api).await?;
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                if first >= instances {
                    return anyhow::Ok(());
                }
                let batch = (first..instances.min(first + BATCH)).map(|n| instance(round, n));
                let body = json!({"instances": batch.collect::<Vec<_>>()}).to_string();
                let path = "/v1/instances";
                let (status, answer) = ask(&mut connection, Method::POST, path, body.into()).await?;
                ensure!(status == 200 && !answer.contains("\"problem\""), "{path}: {status}: {answer}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.context("a client")??;
    }
    Ok(())
}

fn instance(round: usize, n: usize) -> Value {
    json!({
        "service": format!("s{}", n % SERVICES),
        "id": format!("i{round}-{n}"),
        "address": format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256),
        "port": 8080,
        "ttl": "1h",
    })
}

/// A connection with what drives it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

async fn connect(address: SocketAddr) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connect {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    // Its end shows in the next request.
    driver.spawn(async move { drop(connection.await) });
    Ok(Connection { sender, _driver: driver })
}

async fn ask(
    connection: &mut Connection,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<(u16, String)> {
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.header("content-type", "application/json").body(Full::new(body))?;
    connection.sender.ready().await?;
    let answer = connection.sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn start_etcd(data: &Path) -> anyhow::Result<(Program, SocketAddr)> {
    let (client, peer) = (free()?, free()?);
    let [client_url, peer_url] = [client, peer].map(|address| format!("http://{address}"));
    let mut command = Command::new(program("etcd")?);
    command.arg("--data-dir").arg(data).args(["--listen-client-urls", &client_url]);
    command.args(["--advertise-client-urls", &client_url, "--listen-peer-urls", &peer_url]);
    command.args(["--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("default={peer_url}"), "--log-level", "error"]);
    let etcd = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start etcd")?;
    let (etcd, begin) = (Program(etcd), Instant::now());
    while etcd_revision(client).await.is_err() {
        ensure!(begin.elapsed() < START, "etcd does not answer at {client}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((etcd, client))
}

/// etcd's revision, by its JSON gateway.
async fn etcd_revision(client: SocketAddr) -> anyhow::Result<u64> {
    let mut connection = connect(client).await?;
    let (status, answer) =
        ask(&mut connection, Method::POST, "/v3/kv/range", r#"{"key":"eA=="}"#.into()).await?;
    let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{status}: {answer}"))?;
    let revision = answer["header"]["revision"].as_str().and_then(|text| text.parse().ok());
    revision.with_context(|| format!("no revision in {answer}"))
}

fn start_registry(pillion: &Path, data: &Path, etcd: SocketAddr) -> anyhow::Result<(Program, SocketAddr)> {
    let mut command = Command::new(pillion);
    command.args(["registry", "--open", "--store", &format!("etcd://{etcd}/bench"), "--data-dir"]).arg(data);
    command.args(["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--dns", "127.0.0.1:0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut registry = Program(command.spawn().with_context(|| format!("start {}", pillion.display()))?);
    let mut output = BufReader::new(registry.0.stdout.take().context("no output")?);
    let mut line = String::new();
    while output.read_line(&mut line).context("read what the registry prints")? > 0 {
        if let Some(url) = line.strip_prefix("api ") {
            let address = url.split_whitespace().next().and_then(|url| url.rsplit('/').next());
            let address = address.and_then(|address| address.parse().ok());
            let address = address.with_context(|| format!("no address in `{line}`"))?;
            // What it prints later must find somebody who could read it.
            registry.0.stdout = Some(output.into_inner());
            return Ok((registry, address));
        }
        line.clear();
    }
    bail!("the registry ended before it said where its API is")
}

/// The program, as `cargo xtask peers` or the system installs it.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(PathBuf::from("target/peers/bin")).chain(std::env::split_paths(&path));
    let found = places.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
    found.with_context(|| format!("{name} is missing; `cargo xtask peers` installs it"))
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
