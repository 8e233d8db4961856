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
    data: PathBuf,
}

impl Registry {
    /// Starts one with its data in `data`.
    pub async fn start(data: &Path) -> Self {
        Self::start_at(data, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts one whose API listens on `api`.
    pub async fn start_at(data: &Path, api: SocketAddr) -> Self {
        let folder = data.display().to_string();
        let address = api.to_string();
        let arguments = ["registry", "--open", "--data-dir", &folder, "--api", &address];
        let process = Process::pillion("registry", arguments);
        let api = process.bound("api").await;
        let finished = run(["wait", "--address", &api.to_string()]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        Self { process, api, data: data.to_owned() }
    }

    /// Kills it as a crash would, and starts it again on the same data and port.
    pub async fn crash_and_restart(self) -> Self {
        let Self { process, api, data } = self;
        process.kill().await;
        Self::start_at(&data, api).await
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
