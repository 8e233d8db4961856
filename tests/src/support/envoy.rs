//! A real Envoy that joins a mesh by what `pillion generate envoy` writes.

use std::net::SocketAddr;
use std::path::Path;

use super::http;
use super::ports::{free_address, free_port};
use super::process::{Process, run};
use super::registry::Registry;
use super::wait::{DEADLINE, eventually};

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    /// The process.
    pub process: Process,
    /// Where its application's calls go.
    pub outbound: SocketAddr,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts one of `service` (`name.namespace`), with files in `folder`; with `application`, it
    /// announces an instance at 127.0.0.1 and takes its calls.
    ///
    /// # Panics
    ///
    /// If the files cannot be written or Envoy does not come up.
    pub async fn join(
        envoy: &Path,
        registry: &Registry,
        service: &str,
        application: Option<SocketAddr>,
        folder: &Path,
    ) -> Self {
        Self::join_by("DELTA_GRPC", envoy, registry, service, application, folder).await
    }

    /// As [`Self::join`], with this variant of the protocol: `DELTA_GRPC` or `GRPC`.
    ///
    /// # Panics
    ///
    /// If the files cannot be written or Envoy does not come up.
    pub async fn join_by(
        variant: &str,
        envoy: &Path,
        registry: &Registry,
        service: &str,
        application: Option<SocketAddr>,
        folder: &Path,
    ) -> Self {
        let (name, namespace) = service.split_once('.').expect("name.namespace");
        let (outbound, admin) = (free_address(), free_address());
        let out = folder.join(name).display().to_string();
        let mut arguments: Vec<String> = ["generate", "envoy"].map(str::to_owned).into();
        for (flag, value) in [
            ("--registry", registry.mesh.to_string()),
            ("--service", name.to_owned()),
            ("--namespace", namespace.to_owned()),
            ("--outbound", outbound.to_string()),
            ("--admin", admin.to_string()),
            ("--out", out.clone()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        if let Some(application) = application {
            let (port, inbound) = (application.port().to_string(), free_port().to_string());
            let more = ["--port", &port, "--inbound-port", &inbound, "--advertise", "127.0.0.1"];
            arguments.extend(more.map(str::to_owned));
        }
        let written = run(&arguments).await;
        assert_eq!(written.code, 0, "{written:?}");
        let base = (u32::from(outbound.port())).to_string(); // apart from every other Envoy of this host
        let bootstrap = format!("{out}/envoy.json");
        let text = std::fs::read_to_string(&bootstrap).expect("written above");
        std::fs::write(&bootstrap, text.replace("DELTA_GRPC", variant)).expect("written above");
        let arguments = ["-c", &bootstrap, "--base-id", &base, "--concurrency", "1", "-l", "warning"];
        let process = Process::program(&format!("envoy of {service}"), envoy, arguments);
        let joined = Self { process, outbound, admin };
        eventually("Envoy has its listeners", DEADLINE, || async {
            let ready = http::get(admin, "admin", "/ready").await?;
            if ready.status == 200 { Ok(()) } else { Err(format!("{ready:?}")) }
        })
        .await;
        joined
    }

    /// A page of its administration.
    ///
    /// # Panics
    ///
    /// If Envoy does not answer.
    pub async fn page(&self, path: &str) -> http::Answer {
        http::get(self.admin, "admin", path).await.expect("Envoy's admin answers")
    }

    /// The values of statistics whose name matches a regular expression.
    ///
    /// # Panics
    ///
    /// If Envoy does not answer.
    pub async fn stats(&self, filter: &str) -> Vec<(String, u64)> {
        let page = self.page(&format!("/stats?filter={filter}")).await;
        let value = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        page.body.lines().filter_map(value).collect()
    }
}
