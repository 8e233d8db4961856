//! One of the two proxies.

use std::net::SocketAddr;
use std::path::Path;

use pillion_tests::support::ports::free_address;
use pillion_tests::support::{DEADLINE, Process, http, peer};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    Envoy,
    Pillion,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) program: Program,
    /// Where the listeners are.
    pub(crate) web: SocketAddr,
    /// For its files.
    pub(crate) folder: TempDir,
    admin: SocketAddr,
    process: Option<Process>,
}

impl Side {
    /// Both, or only Pillion where there is no Envoy.
    pub(crate) fn both() -> Vec<Self> {
        let envoy = peer("envoy").map(|_found| Program::Envoy);
        envoy.into_iter().chain([Program::Pillion]).map(Self::prepare).collect()
    }

    /// One that does not run yet.
    pub(crate) fn prepare(program: Program) -> Self {
        Self {
            program,
            web: free_address(),
            folder: tempfile::tempdir().expect("a folder"),
            admin: free_address(),
            process: None,
        }
    }

    /// Who it is to a control plane.
    pub(crate) fn node(&self) -> &'static str {
        match self.program {
            Program::Envoy => "envoy",
            Program::Pillion => "pillion",
        }
    }

    /// A file of its folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Moves a file to its place, as files that are watched have to be replaced.
    pub(crate) fn replace(&self, name: &str, text: &str) {
        let new = self.folder.path().join(format!("{name}.new"));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, self.folder.path().join(name)).expect("moved");
    }

    /// A `DiscoveryResponse` as a file.
    pub(crate) fn replace_resources(&self, name: &str, version: &str, resources: &[Value]) {
        let response = json!({"version_info": version, "resources": resources});
        self.replace(name, &serde_json::to_string_pretty(&response).expect("JSON"));
    }

    /// Starts it, and waits until it is ready.
    pub(crate) async fn start(&mut self, mut bootstrap: Value) {
        bootstrap["admin"] = json!({"address": super::resources::socket(self.admin)});
        bootstrap["node"] = json!({"id": self.node(), "cluster": "test"});
        self.replace("bootstrap.json", &bootstrap.to_string());
        let (file, admin) = (self.path("bootstrap.json"), self.admin.to_string());
        let process = match self.program {
            Program::Envoy => {
                let envoy = peer("envoy").expect("the caller has looked");
                let flags = ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
                Process::program("envoy", Path::new(&envoy), flags)
            }
            Program::Pillion => Process::pillion(
                "pillion",
                ["proxy", "--envoy-config", &file, "--workers", "1", "--admin", &admin],
            ),
        };
        self.process = Some(process);
        self.eventually("is ready", async |side: &Self| {
            let ready = side.page("/ready").await?;
            if ready.status == 200 { Ok(()) } else { Err(format!("{ready:?}")) }
        })
        .await;
    }

    /// Waits for a condition, and says what the process said if it does not come.
    pub(crate) async fn eventually<T>(
        &self,
        what: &str,
        mut check: impl AsyncFnMut(&Self) -> Result<T, String>,
    ) -> T {
        let what = format!("{:?} {what}", self.program);
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let why = match check(self).await {
                Ok(value) => return value,
                Err(why) => why,
            };
            assert!(tokio::time::Instant::now() < deadline, "{what}: {why}\n{}", self.output());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// A page of its administration.
    pub(crate) async fn page(&self, path: &str) -> Result<http::Answer, String> {
        http::get(self.admin, "admin", path).await
    }

    /// Asks its listener.
    pub(crate) async fn get(&self, path: &str) -> Result<http::Answer, String> {
        http::get(self.web, "web", path).await
    }

    /// One statistic; 0 if there is none.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let page = self.page("/stats").await.expect("statistics");
        let value =
            page.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
        value.unwrap_or_default()
    }

    /// What it printed.
    pub(crate) fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }
}
