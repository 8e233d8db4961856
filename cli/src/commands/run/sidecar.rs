//! The sidecar process that `pillion run` starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::names::Names;
use crate::commands::sidecar::{InstanceArguments, JoinArguments};
use crate::demo::child::DIE_WITH_PARENT;
use crate::http::{Origin, send};
use crate::output::note;

/// How long the sidecar may take to become ready: a registry that is away may come back.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long draining may take: in-flight requests have 20 s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// How long the sidecar may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the sidecar listens; unlike `pillion proxy` on free ports, so that several fit on a host.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListenArguments {
    /// For other sidecars, over mutual TLS.
    #[arg(long, env = "PILLION_INBOUND", value_name = "ADDRESS", default_value = "0.0.0.0:0")]
    inbound: SocketAddr,
    /// For the command's calls: routed by Host, and an HTTP proxy.
    #[arg(long, env = "PILLION_OUTBOUND", value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    outbound: SocketAddr,
    /// Administration; loopback only.
    #[arg(long, env = "PILLION_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// `/metrics`, `/ready` and `/live`.
    #[arg(long, env = "PILLION_METRICS", value_name = "ADDRESS", default_value = "0.0.0.0:0")]
    metrics: SocketAddr,
    /// DNS for the command; loopback only. Without it, port 53 of a loopback address where that can
    /// be bound, else a free port.
    #[arg(long, env = "PILLION_DNS", value_name = "ADDRESS")]
    dns: Option<SocketAddr>,
}

/// A running sidecar.
pub(super) struct Sidecar {
    process: Child,
    bound: Bound,
    _reader: JoinSet<()>,
}

/// What the sidecar bound, read from what it prints.
#[derive(Clone, Copy)]
struct Bound {
    inbound: SocketAddr,
    outbound: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    dns: SocketAddr,
}

impl Sidecar {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(
        join: &JoinArguments,
        instance: &InstanceArguments,
        listen: &ListenArguments,
        dns: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("find our own binary")?;
        let dns = listen.dns.or(dns).unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let mut command = Command::new(binary);
        // Its own process group: Ctrl-C is for the command, the sidecar ends when we say so.
        command.arg("proxy").args(words(join, instance, listen, dns)).process_group(0).kill_on_drop(true);
        if let Some(token) = &join.join_token {
            command.env("PILLION_JOIN_TOKEN", token); // an argument could be read by everybody on this host
        }
        command.env(DIE_WITH_PARENT, "1").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().context("start `pillion proxy`")?;
        let stdout = process.stdout.take().context("stdout is piped")?;
        let (lines, mut reader) = (Lines::default(), JoinSet::new());
        reader.spawn(lines.clone().keep(stdout));
        let bound = tokio::select! {
            bound = lines.bound() => bound,
            status = process.wait() => anyhow::bail!("it ended with {}", status?),
        };
        let mut sidecar = Self { process, bound, _reader: reader };
        sidecar.ready().await?;
        Ok(sidecar)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let metrics = origin(loopback(self.bound.metrics));
        tokio::select! {
            ready = crate::commands::ready::wait_until_ready(&metrics, READY_TIMEOUT) => ready,
            status = self.process.wait() => anyhow::bail!("it ended with {}", status?),
        }
    }

    /// Says what listens where and which way names work.
    pub(super) fn announce(&self, names: &Names) {
        let Bound { inbound, outbound, admin, metrics, dns } = self.bound;
        note(format_args!(
            "sidecar ready: inbound {inbound}, outbound {outbound}, admin {admin}, metrics {metrics}, dns {dns}"
        ));
        note(format_args!("names: {names}"));
    }

    /// Where the command's calls may go.
    pub(super) fn outbound(&self) -> SocketAddr {
        self.bound.outbound
    }

    /// What the command is told.
    pub(super) fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("PILLION_PROXY", format!("http://{}", self.bound.outbound)),
            ("PILLION_ADMIN_URL", format!("http://{}", self.bound.admin)),
            ("PILLION_METRICS_URL", format!("http://{}", loopback(self.bound.metrics))),
            ("PILLION_DNS_SERVER", self.bound.dns.to_string()),
        ]
    }

    /// Waits for its end, which should not come before ours.
    pub(super) async fn ended(&mut self) -> String {
        self.process
            .wait()
            .await
            .map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string())
    }

    /// Asks it to take nothing new, and waits until what is in flight is answered.
    pub(super) async fn drain(&mut self) {
        let request = http::Request::post("/drain?wait=true").body(Bytes::new());
        let drained = match request {
            Ok(request) => send(&origin(self.bound.admin), None, request, DRAIN_TIMEOUT).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = drained {
            note(format_args!("the sidecar did not drain: {error:#}"));
        }
    }

    /// Ends it.
    pub(super) async fn stop(mut self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, Signal::TERM); // it may have ended already
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.process.wait()).await.is_err() {
            note(format_args!("the sidecar has not ended within {STOP_TIMEOUT:?} and is killed"));
            let _ = self.process.kill().await;
        }
    }
}

/// The arguments of `pillion proxy`. The join token is not among them.
fn words(
    join: &JoinArguments,
    instance: &InstanceArguments,
    listen: &ListenArguments,
    dns: SocketAddr,
) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    for registry in &join.registry {
        add("--registry", registry.clone());
    }
    if let Some(file) = &join.join_token_file {
        add("--join-token-file", file.display().to_string());
    }
    if let Some(service) = &instance.service {
        add("--service", service.clone());
    }
    add("--namespace", instance.namespace.clone());
    for port in &instance.port {
        add("--port", port.to_string());
    }
    if let Some(id) = &instance.instance_id {
        add("--instance-id", id.clone());
    }
    for label in &instance.label {
        add("--label", format!("{}={}", label.key, label.value));
    }
    if !instance.zone.is_empty() {
        add("--zone", instance.zone.clone());
    }
    add("--weight", instance.weight.to_string());
    add("--ttl", instance.ttl.to_string());
    if let Some(advertise) = &instance.advertise {
        add("--advertise", advertise.clone());
    }
    if let Some(folder) = &instance.state_dir {
        add("--state-dir", folder.display().to_string());
    }
    add("--inbound", listen.inbound.to_string());
    add("--outbound", listen.outbound.to_string());
    add("--admin", listen.admin.to_string());
    add("--metrics", listen.metrics.to_string());
    add("--dns", dns.to_string());
    words
}

fn origin(address: SocketAddr) -> Origin {
    Origin { tls: false, host: address.ip().to_string(), port: address.port() }
}

/// The address by which we reach a socket of this host.
fn loopback(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))
    } else {
        address
    }
}

/// What the sidecar printed, by listener; other lines are handed on to our stderr.
#[derive(Clone, Default)]
struct Lines {
    found: Arc<Mutex<[Option<SocketAddr>; 5]>>,
    bell: watch::Sender<()>,
}

const LISTENERS: [&str; 5] = ["inbound", "outbound", "admin", "metrics", "dns"];

impl Lines {
    async fn keep(self, stdout: ChildStdout) {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut words = line.split_whitespace();
            let listener = words.next().and_then(|word| LISTENERS.iter().position(|name| *name == word));
            let address = words.next().and_then(|word| word.rsplit('/').next()?.parse().ok());
            match (listener, address) {
                (Some(listener), Some(address)) => {
                    self.found.lock().unwrap_or_else(PoisonError::into_inner)[listener] = Some(address);
                    self.bell.send_replace(());
                }
                _ => note(line),
            }
        }
    }

    /// Waits until every listener has been told.
    async fn bound(&self) -> Bound {
        let mut bell = self.bell.subscribe();
        loop {
            let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
            if let [Some(inbound), Some(outbound), Some(admin), Some(metrics), Some(dns)] = found {
                return Bound { inbound, outbound, admin, metrics, dns };
            }
            drop(bell.changed().await); // the sender is held by self
        }
    }
}
