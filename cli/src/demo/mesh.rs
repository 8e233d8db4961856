//! The demo's mesh: a registry and workloads, each its own process, in a folder that goes with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use http::Method;

use super::child::Child;
use super::workload::{Plan, Workload};
use crate::api::Client;
use crate::http::Origin;

/// The resources that the demo applies; also an example to read.
pub(super) const RESOURCES: &str = include_str!("../../../examples/shop.yaml");

/// Who takes part.
pub(super) const PLANS: [Plan; 7] = [
    web("front", "front-1", None, true),
    web("orders", "orders-v1-1", Some("v1"), false),
    web("orders", "orders-v1-2", Some("v1"), false),
    web("orders", "orders-v2-1", Some("v2"), false),
    web("payments", "payments-1", None, false),
    Plan {
        service: "clock",
        instance: "clock-1",
        version: None,
        protocol: "tcp",
        arguments: &[],
        calls: false,
    },
    web("shopper", "shopper-1", None, true),
];

const fn web(
    service: &'static str,
    instance: &'static str,
    version: Option<&'static str>,
    calls: bool,
) -> Plan {
    Plan { service, instance, version, protocol: "http", arguments: &[], calls }
}

/// Everything that runs.
pub(super) struct Mesh {
    registry: Child,
    pub(super) api: SocketAddr,
    pub(super) join: SocketAddr,
    pub(super) dns: SocketAddr,
    pub(super) workloads: Vec<Workload>,
    /// Last, so that it goes after the processes that write there.
    folder: Folder,
}

impl Mesh {
    /// Starts everything, and waits until every sidecar is ready.
    pub(super) async fn start(tell: impl Fn(&str)) -> anyhow::Result<Self> {
        let folder = Folder::make()?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        tell("starting the registry");
        let mut registry = Child::start("registry", &registry_arguments(&folder, [any; 3]))?;
        let api = registry.bound("api").await?;
        let join = registry.bound("mesh").await?;
        let dns = registry.bound("dns").await?;
        let mut mesh = Self { registry, api, join, dns, workloads: Vec::new(), folder };
        crate::commands::ready::wait_until_ready(&mesh.origin(), super::START_TIMEOUT).await?;
        tell("applying examples/shop.yaml");
        mesh.apply(RESOURCES).await?;
        for (plan, host) in PLANS.iter().zip(1..) {
            tell(&format!("starting {} and its sidecar", plan.instance));
            let address = Ipv4Addr::new(127, 0, 1, host);
            let workload = Workload::start(plan, address, join, &mesh.folder.0).await?;
            mesh.workloads.push(workload);
        }
        for workload in &mesh.workloads {
            workload.ready().await?;
        }
        Ok(mesh)
    }

    /// The registry's API.
    pub(super) fn client(&self) -> Client {
        Client::local(self.api)
    }

    fn origin(&self) -> Origin {
        Origin { tls: false, host: self.api.ip().to_string(), port: self.api.port() }
    }

    /// Applies resources, all or nothing.
    pub(super) async fn apply(&self, yaml: &'static str) -> anyhow::Result<()> {
        let headers = [("content-type", "application/yaml")];
        self.client().request(Method::POST, "/v1/apply", &headers, yaml).await.context("apply")?;
        Ok(())
    }

    /// The workload with this instance id.
    pub(super) fn workload(&self, instance: &str) -> anyhow::Result<&Workload> {
        let found = self.workloads.iter().find(|workload| workload.plan.instance == instance);
        found.with_context(|| format!("the demo has no instance {instance}"))
    }

    /// Kills an instance and its sidecar, and forgets them.
    pub(super) async fn kill(&mut self, instance: &str) -> anyhow::Result<()> {
        let at = self.workloads.iter().position(|workload| workload.plan.instance == instance);
        let mut workload = self.workloads.remove(at.with_context(|| format!("no instance {instance}"))?);
        workload.kill().await
    }

    /// Kills the registry as a crash would.
    pub(super) async fn kill_registry(&mut self) -> anyhow::Result<()> {
        self.registry.kill().await
    }

    /// Starts the registry again, on the same ports and the same data.
    pub(super) async fn start_registry(&mut self) -> anyhow::Result<()> {
        let arguments = registry_arguments(&self.folder, [self.api, self.join, self.dns]);
        self.registry = Child::start("registry", &arguments)?;
        self.registry.bound("api").await?;
        crate::commands::ready::wait_until_ready(&self.origin(), super::START_TIMEOUT).await
    }

    /// The name of a process that has ended although it should not have, with what it printed last.
    pub(super) fn casualty(&mut self) -> Option<String> {
        let children =
            self.workloads.iter_mut().flat_map(|workload| [&mut workload.application, &mut workload.sidecar]);
        let mut all = std::iter::once(&mut self.registry).chain(children);
        all.find_map(|child| {
            child.has_ended().then(|| format!("{} has ended:\n{}", child.name, child.tail()))
        })
    }

    /// Ends everything in order.
    pub(super) async fn stop(self) {
        futures_util::future::join_all(self.workloads.into_iter().map(Workload::stop)).await;
        self.registry.stop().await;
    }
}

fn registry_arguments(folder: &Folder, [api, mesh, dns]: [SocketAddr; 3]) -> Vec<String> {
    let data = folder.0.join("registry").display().to_string();
    let (api, mesh, dns) = (api.to_string(), mesh.to_string(), dns.to_string());
    ["registry", "--open", "--data-dir", &data, "--api", &api, "--mesh", &mesh, "--dns", &dns]
        .map(str::to_owned)
        .into()
}

/// A folder of our own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!(
            "pillion-demo-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        ));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the system's temporary folder, which is cleared anyway.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
