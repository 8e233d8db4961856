//! Sidecars that a registry drives, as users run them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tokio::time::Instant;

use super::run::free;
use super::server::{Programs, Server};
use crate::peer::{Peer, pinned};
use crate::report::{Budget, Report};

/// For the report.
const SIDECAR: &str = "a sidecar of a registry";
/// Services that it follows: at first, and then.
const FOLLOWED: [usize; 2] = [100, 1000];
/// How long anything may take until it is there.
const START: Duration = Duration::from_secs(30);
/// Pace at which it is looked for.
const LOOK: Duration = Duration::from_millis(2);
/// What was asked for may still be under way.
const SETTLE: Duration = Duration::from_secs(2);

/// A registry.
pub(super) struct Registry {
    api: SocketAddr,
    mesh: SocketAddr,
    _process: Peer,
}

/// Two sidecars with an application behind the second.
pub(super) struct Pair {
    /// The port of the first that leads to the application.
    pub(super) entry: SocketAddr,
    pub(super) sidecars: Vec<Server>,
    _registry: Registry,
}

/// Ports of a sidecar.
struct Ports {
    admin: SocketAddr,
    outbound: SocketAddr,
}

impl Registry {
    fn start(programs: &Programs, folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (api, mesh) = (free()?, free()?);
        let mut command = Command::new(&programs.pillion);
        command.args(["registry", "--open", "--log", "error", "--dns", "127.0.0.1:0"]);
        command.args(["--api", &api.to_string(), "--mesh", &mesh.to_string()]);
        command.arg("--data-dir").arg(folder.join("data"));
        let process = Peer(quiet(&mut command, folder)?.spawn().context("start the registry")?);
        until("the registry", || Ok(TcpStream::connect(api).is_ok()))?;
        Ok(Self { api, mesh, _process: process })
    }

    /// Instances that nobody has to keep alive, one for each of so many services.
    fn register(&self, services: usize) -> anyhow::Result<()> {
        let instance = |number| {
            let service = format!("further-{number}");
            json!({"service": service, "id": "0", "address": "127.0.0.1", "port": 9, "ttl": "never"})
        };
        let all: Vec<_> = (0..services).map(instance).collect();
        let body = json!({"instances": all}).to_string();
        let head = format!(
            "POST /v1/instances HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n",
            self.api,
            body.len()
        );
        let status = ask(self.api, &(head + "content-type: application/json\r\n"), &body)?;
        ensure!(status == 200, "the registry answered {status}");
        Ok(())
    }

    /// Starts a sidecar and waits until it is ready.
    fn sidecar(
        &self,
        programs: &Programs,
        service: &str,
        port: u16,
        more: &[String],
        folder: &Path,
    ) -> anyhow::Result<(Server, Ports)> {
        std::fs::create_dir_all(folder)?;
        let ports = Ports { admin: free()?, outbound: free()? };
        let mut command = pinned(&programs.pillion);
        command.args(["proxy", "--workers", "1", "--log", "error", "--service", service]);
        command.args(["--port", &port.to_string(), "--registry", &self.mesh.to_string()]);
        command.args(["--inbound", &free()?.to_string(), "--outbound", &ports.outbound.to_string()]);
        command.args(["--admin", &ports.admin.to_string(), "--metrics", "127.0.0.1:0"]);
        command.args(["--dns", "127.0.0.1:0"]).args(more).arg("--state-dir").arg(folder.join("state"));
        let begun = Instant::now();
        let process = quiet(&mut command, folder)?.spawn().context("start a sidecar")?;
        let mut server = Server::of(process, ports.admin);
        until(service, || {
            Ok(ask(ports.admin, "GET /ready HTTP/1.1\r\nhost: admin\r\n", "").is_ok_and(|it| it == 200))
        })?;
        server.start = begun.elapsed();
        Ok((server, ports))
    }
}

impl Pair {
    /// Starts both, and waits until the application answers through them.
    pub(super) fn start(programs: &Programs, origin: SocketAddr, folder: &Path) -> anyhow::Result<Self> {
        let registry = Registry::start(programs, &folder.join("registry"))?;
        let (receiver, _) =
            registry.sidecar(programs, "app", origin.port(), &[], &folder.join("receiver"))?;
        let entry = free()?;
        let upstream = ["--upstream".to_owned(), format!("{}=app:{}", entry.port(), origin.port())];
        let nobody = free()?.port();
        let (caller, _) = registry.sidecar(programs, "caller", nobody, &upstream, &folder.join("caller"))?;
        let head = "GET /0 HTTP/1.1\r\nhost: app\r\n";
        until("the application", || Ok(ask(entry, head, "").is_ok_and(|status| status == 200)))?;
        Ok(Self { entry, sidecars: vec![receiver, caller], _registry: registry })
    }
}

/// Memory and start of one that carries nothing.
///
/// # Errors
///
/// If it does not run.
pub(super) fn standing(
    report: &mut Report,
    programs: &Programs,
    folder: &Path,
    filter: &str,
) -> anyhow::Result<()> {
    if !SIDECAR.contains(filter) {
        return Ok(());
    }
    let folder = folder.join("sidecar");
    let registry = Registry::start(programs, &folder.join("registry"))?;
    registry.register(FOLLOWED[1])?;
    let start = || registry.sidecar(programs, "caller", free()?.port(), &[], &folder.join("caller"));
    let (sidecar, ports) = start()?;
    report.row(format!("{SIDECAR}: start until it is ready"), millis(&sidecar), "ms", None);
    let (mut asked, mut before) = (0, 0);
    for (count, most) in FOLLOWED.into_iter().zip([None, Some(4.0)]) {
        eprintln!("{SIDECAR}: {count} services");
        for number in asked..count {
            let head = format!("GET / HTTP/1.1\r\nhost: further-{number}.mesh.internal:9\r\n");
            // Nobody listens there: what is wanted is that the sidecar follows the service.
            let status = ask(ports.outbound, &head, "")?;
            ensure!(status == 503, "a request to further-{number} was answered {status}");
        }
        std::thread::park_timeout(SETTLE);
        let memory = sidecar.memory()?;
        match most {
            None => {
                let mib = memory as f64 / f64::from(1 << 20);
                report.row(
                    format!("{SIDECAR}: memory, {count} services"),
                    mib,
                    "MiB",
                    Some(Budget::AtMost(14.0)),
                );
            }
            Some(most) => {
                let each = memory.saturating_sub(before) as f64 / (count - asked) as f64 / 1024.0;
                let name = format!("{SIDECAR}: memory of each further service");
                report.row(name, each, "KiB", Some(Budget::AtMost(most)));
            }
        }
        (asked, before) = (count, memory);
    }
    drop(sidecar);
    let (again, _) = start()?;
    let name = format!("{SIDECAR}: start until it is ready, {} services on disk", FOLLOWED[1]);
    report.row(name, millis(&again), "ms", Some(Budget::AtMost(150.0)));
    Ok(())
}

fn millis(server: &Server) -> f64 {
    server.start.as_secs_f64() * 1e3
}

fn quiet<'a>(command: &'a mut Command, folder: &Path) -> anyhow::Result<&'a mut Command> {
    let log = std::fs::File::create(folder.join("log"))?;
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}

fn until(what: &str, mut there: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + START;
    while !there()? {
        if Instant::now() >= end {
            bail!("{what} is not there within {START:?}");
        }
        std::thread::park_timeout(LOOK);
    }
    Ok(())
}

/// Sends a request on a connection of its own; returns the status.
fn ask(to: SocketAddr, head: &str, body: &str) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(START))?;
    stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("no answer: {text}"))
}
