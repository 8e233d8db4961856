//! A mesh of a registry and sidecars on free ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use pillion_tests::support::process::finish;
use pillion_tests::support::{DEADLINE, Process, Registry, eventually, http};

/// A free port of loopback.
pub(crate) const ANY: &str = "127.0.0.1:0";
/// The listeners of a sidecar on free ports.
pub(crate) const LISTENERS: [&str; 10] =
    ["--inbound", ANY, "--outbound", ANY, "--admin", ANY, "--metrics", ANY, "--dns", ANY];

/// A sidecar process.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) outbound: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) dns: SocketAddr,
}

impl Sidecar {
    /// Starts one for `service`, whose application has `port`, with more arguments.
    pub(crate) async fn start(registry: &Registry, service: &str, port: u16, more: &[&str]) -> Self {
        let (mesh, port) = (registry.mesh.to_string(), port.to_string());
        let fixed = ["proxy", "--registry", &mesh, "--service", service, "--port", &port];
        let arguments = fixed.iter().chain(&LISTENERS).chain(more);
        Self::bound(Process::pillion(service, arguments)).await
    }

    async fn bound(process: Process) -> Self {
        Self {
            outbound: process.bound("outbound").await,
            admin: process.bound("admin").await,
            metrics: process.bound("metrics").await,
            dns: process.bound("dns").await,
            process,
        }
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually("the sidecar is ready", DEADLINE, || async {
            let page = http::get(self.metrics, "sidecar", "/ready").await?;
            if page.status == 200 { Ok(()) } else { Err(page.body) }
        })
        .await;
    }

    /// Asks its DNS for an address, by `dig`: its short answer, or the status.
    pub(crate) async fn dig(&self, dig: &Path, name: &str) -> Result<Ipv4Addr, String> {
        let port = self.dns.port().to_string();
        let fixed = ["@127.0.0.1", "-p", &port, "+tries=1", "+time=5", name, "A"];
        let answer = finish(dig, fixed).await.stdout;
        let rows = answer.lines().filter(|line| !line.starts_with(';'));
        let found = rows.filter_map(|line| line.rsplit(['\t', ' ']).next()?.parse().ok()).next();
        found.ok_or_else(|| {
            let status = answer.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
            status.unwrap_or(&answer).to_owned()
        })
    }
}

/// A sample service that answers with its name, and its sidecar.
pub(crate) struct Orders {
    pub(crate) sidecar: Sidecar,
    /// The application's port.
    pub(crate) port: u16,
    _app: Process,
}

impl Orders {
    /// Starts it and waits until it serves.
    pub(crate) async fn start(registry: &Registry) -> Self {
        let (app, address) = sample("orders-1").await;
        let sidecar = Sidecar::start(registry, "orders", address.port(), &[]).await;
        sidecar.ready().await;
        Self { sidecar, port: address.port(), _app: app }
    }
}

/// A sample HTTP service and where it listens.
pub(crate) async fn sample(instance: &str) -> (Process, SocketAddr) {
    let process = Process::pillion(instance, ["demo-service", "orders", "--instance", instance]);
    let address = process.bound("listening on").await;
    (process, address)
}

/// Applies resources from text.
pub(crate) async fn apply(registry: &Registry, text: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, text).expect("written");
    let applied = registry.cli(&["apply", "-f", &file.display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
}

/// A port that nobody has at this moment.
pub(crate) fn free_port() -> u16 {
    let free = std::net::TcpListener::bind(ANY).expect("a free port");
    free.local_addr().expect("bound").port()
}
