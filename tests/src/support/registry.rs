//! A registry process on free ports, with a data directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::http::{self, Answer};
use super::process::{Finished, Process, run};

/// A running registry, open to this machine.
#[derive(Debug)]
pub struct Registry {
    /// The process.
    pub process: Process,
    /// The HTTP API.
    pub api: SocketAddr,
    /// gRPC for proxies.
    pub mesh: SocketAddr,
    /// DNS, UDP and TCP.
    pub dns: SocketAddr,
    data: PathBuf,
}

impl Registry {
    /// Starts one with its data in `data`.
    pub async fn start(data: &Path) -> Self {
        Self::start_at(data, [SocketAddr::from(([127, 0, 0, 1], 0)); 3]).await
    }

    /// Starts one on these addresses: API, mesh, DNS.
    async fn start_at(data: &Path, addresses: [SocketAddr; 3]) -> Self {
        let folder = data.display().to_string();
        let [api, mesh, dns] = addresses.map(|address| address.to_string());
        let arguments = ["--data-dir", &folder, "--api", &api, "--mesh", &mesh, "--dns", &dns];
        let process = Process::pillion("registry", ["registry", "--open"].into_iter().chain(arguments));
        let api = process.bound("api").await;
        let mesh = process.bound("mesh").await;
        let dns = process.bound("dns").await;
        let finished = run(["wait", "--address", &api.to_string()]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        Self { process, api, mesh, dns, data: data.to_owned() }
    }

    /// Kills it as a crash would, and starts it again on the same data and ports.
    pub async fn crash_and_restart(self) -> Self {
        let Self { process, api, mesh, dns, data } = self;
        process.kill().await;
        Self::start_at(&data, [api, mesh, dns]).await
    }

    /// Runs a command of `pillion` against it.
    pub async fn cli(&self, arguments: &[&str]) -> Finished {
        let api = format!("http://{}", self.api);
        run(arguments.iter().copied().chain(["--api", &api])).await
    }

    /// Asks the API.
    ///
    /// # Panics
    ///
    /// If there is no answer.
    pub async fn get(&self, path: &str) -> Answer {
        http::get(self.api, &self.api.to_string(), path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Sends JSON to the API.
    ///
    /// # Panics
    ///
    /// If there is no answer.
    pub async fn put(&self, path: &str, body: &serde_json::Value) -> Answer {
        let request = ::http::Request::put(path)
            .header("host", self.api.to_string())
            .header("content-type", "application/json")
            .body(bytes::Bytes::from(body.to_string()))
            .expect("a valid request");
        http::send(self.api, request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}
