//! The proxies, each on CPU 0 with one worker.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::Instant;

use super::configuration::{Hop, Tls, envoy, haproxy, nginx};
use crate::peer::{Peer, pinned};
use crate::usage;

/// How long a proxy may take until it accepts.
const START: Duration = Duration::from_secs(20);

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Under test.
    Pillion,
    /// With the file that Pillion has.
    Envoy,
    /// In HTTP mode.
    HaProxy,
    /// As a reverse proxy.
    Nginx,
}

/// Programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The binary under test.
    pub pillion: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pillion, Self::Envoy, Self::HaProxy, Self::Nginx];

    /// For the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pillion => "Pillion",
            Self::Envoy => "Envoy",
            Self::HaProxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Server {
    /// Where it accepts.
    pub address: SocketAddr,
    /// From its start until it accepted.
    pub start: Duration,
    process: Peer,
}

impl Server {
    /// Starts one that does what `hop` says; its files are in `folder`.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not start.
    pub fn start(
        kind: Kind,
        programs: &Programs,
        hop: &Hop,
        tls: Option<&Tls>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let file = folder.join("configuration");
        let (text, mut command) = match kind {
            Kind::Pillion => {
                let mut command = pinned(&programs.pillion);
                command.args(["proxy", "--workers", "1", "--metrics", "127.0.0.1:0", "--log", "error"]);
                command.arg("--envoy-config").arg(&file);
                (envoy(hop, tls), command)
            }
            Kind::Envoy => {
                let mut command = pinned(&programs.envoy);
                command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c"]).arg(&file);
                (envoy(hop, tls), command)
            }
            Kind::HaProxy => {
                let mut command = pinned("haproxy");
                command.arg("-f").arg(&file);
                (haproxy(hop, tls), command)
            }
            Kind::Nginx => {
                let mut command = pinned("nginx");
                command.arg("-p").arg(folder).arg("-c").arg(&file);
                (nginx(hop, folder), command)
            }
        };
        std::fs::write(&file, text)?;
        let log = std::fs::File::create(folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begun = Instant::now();
        let process = command.spawn().with_context(|| format!("start {}", kind.name()))?;
        let mut server = Self { address: hop.listen, start: Duration::ZERO, process: Peer(process) };
        let end = begun + START;
        while TcpStream::connect(hop.listen).is_err() {
            let said = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            ensure!(server.process.0.try_wait()?.is_none(), "{} ended: {}", kind.name(), said());
            ensure!(Instant::now() < end, "{} does not accept within {START:?}: {}", kind.name(), said());
            std::thread::park_timeout(Duration::from_millis(1));
        }
        server.start = begun.elapsed();
        Ok(server)
    }

    /// One that was started otherwise.
    pub(super) fn of(process: std::process::Child, address: SocketAddr) -> Self {
        Self { address, start: Duration::ZERO, process: Peer(process) }
    }

    /// CPU time that it has used.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        usage::cpu_exact(self.process.0.id(), |_| true)
    }

    /// Memory of its own, in bytes.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn memory(&self) -> anyhow::Result<u64> {
        usage::anonymous_bytes(self.process.0.id())
    }
}
