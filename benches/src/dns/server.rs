//! The servers, each on CPU 0 with one worker.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

use super::data::{Data, ZONE};
use crate::peer::{Peer, pinned};
use crate::usage;

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// For the report.
    pub name: &'static str,
    /// Where it answers, on loopback.
    pub port: u16,
    /// Where it takes changes, on loopback: the registry's API.
    pub api: Option<u16>,
    process: Peer,
}

/// The servers that ours is held against, with the programs that they are.
pub const PEERS: [(&str, &str); 3] = [("Knot", "knotd"), ("NSD", "nsd"), ("Unbound", "unbound")];

/// The threads of ours that do nothing but answer.
const ANSWERING: &str = "dns-udp";
/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(20);
/// Ports tried before giving up: another program may have one of them for TCP.
const PORT_TRIES: usize = 100;

impl Server {
    /// The registry under test, empty.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn pillion(binary: &Path, folder: &Path) -> anyhow::Result<Self> {
        let (port, api) = (free_port()?, free_port()?);
        let mut command = pinned(binary);
        command.args(["registry", "--open", "--mesh", "127.0.0.1:0", "--log", "error"]);
        command.args(["--dns", &format!("127.0.0.1:{port}"), "--api", &format!("127.0.0.1:{api}")]);
        command.arg("--data-dir").arg(folder);
        Self::start("Pillion", port, Some(api), command)
    }

    /// Another server, with the data.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not start.
    pub fn peer(name: &'static str, data: Data, folder: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        std::fs::create_dir_all(folder)?;
        let (here, file) = (folder.display(), folder.join("server.conf"));
        let zone = || std::fs::write(folder.join("zone"), data.records().join("\n") + "\n");
        let (text, mut command) = match name {
            "Knot" => {
                zone()?;
                let mut command = pinned("knotd");
                command.arg("--config").arg(&file);
                (knot(port, &here.to_string()), command)
            }
            "NSD" => {
                zone()?;
                let mut command = pinned("nsd");
                command.arg("-d").arg("-c").arg(&file);
                (nsd(port, &here.to_string()), command)
            }
            "Unbound" => {
                let mut command = pinned("unbound");
                command.arg("-d").arg("-c").arg(&file);
                (unbound(port, &here.to_string(), data), command)
            }
            other => bail!("nobody knows how to start {other}"),
        };
        std::fs::write(&file, text)?;
        command.current_dir(folder);
        Self::start(name, port, None, command)
    }

    fn start(name: &'static str, port: u16, api: Option<u16>, mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().with_context(|| format!("start {name}"))?;
        let mut server = Self { name, port, api, process: Peer(process) };
        let end = Instant::now() + START;
        while answers(port, ZONE)?.is_none_or(|answer| answer[3] & 0x0f != 0) {
            ensure!(server.process.0.try_wait()?.is_none(), "{name} ended");
            ensure!(Instant::now() < end, "{name} does not answer within {START:?}");
        }
        Ok(server)
    }

    /// CPU time that it has used.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        match self.api {
            // Threads of a runtime come and go: only the process knows what those used that ended.
            Some(_) => usage::cpu(self.process.0.id()),
            None => usage::cpu_exact(self.process.0.id(), |_| true),
        }
    }

    /// CPU time that the threads used that only answer; `None` where there are none.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn cpu_answering(&self) -> anyhow::Result<Option<Duration>> {
        let used = usage::cpu_exact(self.process.0.id(), |thread| thread.starts_with(ANSWERING))?;
        Ok(Some(used).filter(|used| !used.is_zero()))
    }

    /// Whether a name has this address now.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub fn has_address(&self, name: &str, address: std::net::Ipv4Addr) -> anyhow::Result<bool> {
        let answer = answers(self.port, name)?.unwrap_or_default();
        Ok(answer.windows(4).any(|bytes| bytes == address.octets()))
    }
}

/// The answer to an A question, if one comes within a fifth of a second.
fn answers(port: u16, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let mut message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).context("a label of 63 bytes at most")?);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(b"\x00\x00\x01\x00\x01");
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect(("127.0.0.1", port))?;
    let mut answer = vec![0; 1500];
    let received = socket.send(&message).and_then(|_| socket.recv(&mut answer));
    Ok(match received {
        Ok(len) if len >= 12 => Some(answer[..len].to_vec()),
        _ => {
            std::thread::park_timeout(Duration::from_millis(20)); // nobody listens yet
            None
        }
    })
}

/// A port that is free for UDP and TCP alike.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..PORT_TRIES {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let port = socket.local_addr()?.port();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free for both UDP and TCP")
}

fn knot(port: u16, folder: &str) -> String {
    format!(
        "server:
    rundir: \"{folder}\"
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: error
database:
    storage: \"{folder}\"
zone:
  - domain: {ZONE}
    storage: \"{folder}\"
    file: zone
    zonefile-sync: -1
    journal-content: none
"
    )
}

fn nsd(port: u16, folder: &str) -> String {
    format!(
        "server:
    server-count: 1
    ip-address: 127.0.0.1@{port}
    username: \"\"
    chroot: \"\"
    zonesdir: \"{folder}\"
    database: \"\"
    pidfile: \"{folder}/pid\"
    xfrdfile: \"{folder}/xfrd\"
    xfrdir: \"{folder}\"
    zonelistfile: \"{folder}/zones\"
    rrl-ratelimit: 0
    verbosity: 0
remote-control:
    control-enable: no
zone:
    name: {ZONE}
    zonefile: zone
"
    )
}

fn unbound(port: u16, folder: &str, data: Data) -> String {
    let records: String =
        data.records().iter().map(|record| format!("    local-data: \"{record}\"\n")).collect();
    format!(
        "server:
    num-threads: 1
    interface: 127.0.0.1@{port}
    access-control: 127.0.0.0/8 allow
    username: \"\"
    chroot: \"\"
    directory: \"{folder}\"
    pidfile: \"{folder}/pid\"
    do-daemonize: no
    use-syslog: no
    module-config: \"iterator\"
    local-zone: \"{ZONE}.\" static
{records}
remote-control:
    control-enable: no
"
    )
}
