//! One of the two proxies, running a fixture's bootstrap.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::bootstrap::{Ports, bootstrap, log_file};
use super::fixture::Fixture;
use crate::support::ports::free_port;
use crate::support::{DEADLINE, Process, http, peer};

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Envoy,
    Pillion,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Pillion => "pillion",
        }
    }
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) program: Program,
    pub(crate) ports: Ports,
    folder: TempDir,
    process: Process,
}

impl Side {
    /// Starts one; `origins` are the ports of what is behind it.
    pub(crate) async fn start(program: Program, fixture: &Fixture, origins: &Ports) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ports = origins.clone();
        for name in fixture.listeners.keys().map(String::as_str).chain(["admin"]) {
            ports.insert(name.to_owned(), free_port());
        }
        let whole = bootstrap(fixture, &ports, folder.path());
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, serde_json::to_string_pretty(&whole).expect("JSON")).expect("written");
        let process = spawn(program, &file, ports["admin"]);
        let mut side = Self { program, ports, folder, process };
        let deadline = Instant::now() + DEADLINE;
        while let Err(why) = side.ready(fixture).await {
            let ended = side.process.has_ended();
            assert!(
                !ended && Instant::now() < deadline,
                "{} does not start: {why}\n{}",
                program.name(),
                side.process.output()
            );
            sleep(Duration::from_millis(20)).await;
        }
        side
    }

    async fn ready(&self, fixture: &Fixture) -> Result<(), String> {
        let ready = http::get(self.address("admin"), "admin", "/ready").await?;
        if ready.status != 200 {
            return Err(format!("/ready says {}: {}", ready.status, ready.body));
        }
        for name in fixture.listeners.keys() {
            TcpStream::connect(self.address(name)).await.map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(())
    }

    /// Where a listener is.
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let port = self.ports.get(listener).unwrap_or_else(|| panic!("there is no listener {listener}"));
        SocketAddr::from(([127, 0, 0, 1], *port))
    }

    /// Lines of the access log for clients at these ports: at least so many, if they come in time.
    pub(crate) async fn log(
        &self,
        listener: &str,
        clients: &[u16],
        count: usize,
        limit: Duration,
    ) -> Vec<String> {
        let file = log_file(self.folder.path(), listener);
        let deadline = Instant::now() + limit;
        loop {
            let lines = lines_of(&file, clients);
            if lines.len() >= count.max(1) || Instant::now() >= deadline {
                return lines;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its statistics that are not 0, by Envoy's names.
    pub(crate) async fn stats(&self) -> BTreeMap<String, i64> {
        let page = http::get(self.address("admin"), "admin", "/stats?usedonly").await;
        let page = page.unwrap_or_else(|error| panic!("/stats of {}: {error}", self.program.name()));
        let row = |line: &str| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        page.body.lines().filter_map(row).collect()
    }

    /// What it printed.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

fn lines_of(file: &PathBuf, clients: &[u16]) -> Vec<String> {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mine = |line: &&str| {
        let port = line.split('|').next().and_then(|address| address.rsplit(':').next()?.parse().ok());
        port.is_some_and(|port| clients.contains(&port))
    };
    let rest = |line: &str| line.split_once('|').map_or("", |(_, rest)| rest).to_owned();
    text.lines().filter(mine).map(|line| format!("log {}", rest(line))).collect()
}

/// The Envoy that is to be compared with instead of the one that the fixtures are held against.
pub fn other_envoy() -> Option<PathBuf> {
    std::env::var_os("PILLION_PARITY_ENVOY").map(PathBuf::from)
}

fn spawn(program: Program, file: &Path, admin: u16) -> Process {
    let path = file.display().to_string();
    match program {
        Program::Envoy => {
            let envoy = other_envoy().or_else(|| peer("envoy")).expect("the caller has looked");
            let arguments = [
                "-c",
                &path,
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "-l",
                "error",
                "--file-flush-interval-msec",
                "5",
            ];
            Process::program("envoy", &envoy, arguments)
        }
        Program::Pillion => {
            let admin = format!("127.0.0.1:{admin}");
            let arguments = ["proxy", "--envoy-config", &path, "--workers", "1", "--admin", &admin];
            Process::pillion("pillion", arguments)
        }
    }
}
