//! One workload of the demo: an application process and, beside it, its sidecar process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::child::Child;
use crate::http::Origin;

/// How long an instance of the demo is believed to live unheard. Short, so that the tour is.
pub(super) const TTL_SECONDS: u64 = 6;
/// How long a sidecar may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// What there is of a workload.
pub(super) struct Plan {
    /// The service; also which sample service the application is.
    pub(super) service: &'static str,
    /// The instance's id.
    pub(super) instance: &'static str,
    /// Label `version`, if it has one.
    pub(super) version: Option<&'static str>,
    /// The port's protocol.
    pub(super) protocol: &'static str,
    /// The sample service's own arguments, beyond those every one has.
    pub(super) arguments: &'static [&'static str],
    /// Whether the application calls others.
    pub(super) calls: bool,
}

/// A running workload.
pub(super) struct Workload {
    pub(super) plan: &'static Plan,
    pub(super) application: Child,
    pub(super) sidecar: Child,
    /// The instance's own loopback address, as if each were a host.
    pub(super) address: Ipv4Addr,
    pub(super) application_address: SocketAddr,
    pub(super) inbound: SocketAddr,
    pub(super) outbound: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) metrics: SocketAddr,
    pub(super) dns: SocketAddr,
}

impl Workload {
    /// Starts both processes and waits until the sidecar is ready.
    pub(super) async fn start(
        plan: &'static Plan,
        address: Ipv4Addr,
        registry: SocketAddr,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let port = free_port()?;
        let state = folder.join(plan.instance);
        let any = SocketAddr::from((address, 0));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut arguments: Vec<String> =
            ["proxy", "--namespace", "shop", "--workers", "1"].map(str::to_owned).into();
        for (flag, value) in [
            ("--service", plan.service.to_owned()),
            ("--instance-id", plan.instance.to_owned()),
            ("--port", format!("{port}:{}", plan.protocol)),
            ("--registry", registry.to_string()),
            ("--advertise", address.to_string()),
            ("--ttl", TTL_SECONDS.to_string()),
            ("--inbound", any.to_string()),
            ("--outbound", local.to_string()),
            ("--admin", local.to_string()),
            ("--metrics", local.to_string()),
            ("--dns", local.to_string()),
            ("--state-dir", state.display().to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        if let Some(version) = plan.version {
            arguments.extend(["--label".to_owned(), format!("version={version}")]);
        }
        let mut sidecar = Child::start(&format!("sidecar of {}", plan.instance), &arguments)?;
        let outbound = sidecar.bound("outbound").await?;

        // The application listens on loopback, as it should beside a sidecar.
        let mut arguments: Vec<String> = vec!["demo-service".into(), plan.service_command().into()];
        arguments.extend(["--listen".into(), format!("127.0.0.1:{port}")]);
        arguments.extend(["--instance".into(), plan.instance.into()]);
        if let Some(version) = plan.version {
            arguments.extend(["--version".into(), version.into()]);
        }
        arguments.extend(plan.arguments.iter().map(|&argument| argument.to_owned()));
        if plan.calls {
            arguments.extend(["--outbound".into(), outbound.to_string()]);
        }
        let mut application = Child::start(plan.instance, &arguments)?;
        let application_address = application.bound("listening on").await?;
        Ok(Self {
            plan,
            application,
            address,
            application_address,
            inbound: sidecar.bound("inbound").await?,
            outbound,
            admin: sidecar.bound("admin").await?,
            metrics: sidecar.bound("metrics").await?,
            dns: sidecar.bound("dns").await?,
            sidecar,
        })
    }

    /// Waits until the sidecar says that it is ready.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let origin = Origin { tls: false, host: self.metrics.ip().to_string(), port: self.metrics.port() };
        crate::commands::ready::wait_until_ready(&origin, READY_TIMEOUT)
            .await
            .with_context(|| format!("{}: it printed last:\n{}", self.sidecar.name, self.sidecar.tail()))
    }

    /// Kills application and sidecar at once, as if their host had died.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.sidecar.kill().await?;
        self.application.kill().await
    }

    /// Ends both in the order of a clean shutdown.
    pub(super) async fn stop(self) {
        self.sidecar.stop().await;
        self.application.stop().await;
    }
}

impl Plan {
    fn service_command(&self) -> &'static str {
        if self.service == "shopper" { "traffic" } else { self.service }
    }
}

/// A port that nobody has right now, and that the system gives to no connection by itself: those begin
/// at 32768. Another process may take it before ours does, which then says so.
fn free_port() -> anyhow::Result<u16> {
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(15_000..32_000)).take(1000);
    let is_free = |port: &u16| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
    candidates.find(is_free).context("find a free port")
}
