//! A registry process on free ports, with a data directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::http::{self, Answer};
use super::ports::free_address;
use super::process::{Finished, Process, run};
use super::wait::{DEADLINE, eventually};

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
    more: Vec<String>,
}

impl Registry {
    /// Starts one with its data in `data`.
    pub async fn start(data: &Path) -> Self {
        Self::start_with(data, &["--open"]).await
    }

    /// Starts one with these further arguments; without `--open` it asks for tokens.
    pub async fn start_with(data: &Path, more: &[&str]) -> Self {
        let addresses = std::array::from_fn(|_| free_address());
        Self::start_at(data, addresses, more.iter().map(|&word| word.to_owned()).collect()).await
    }

    /// Starts one on these addresses: API, mesh, DNS.
    async fn start_at(data: &Path, addresses: [SocketAddr; 3], more: Vec<String>) -> Self {
        let folder = data.display().to_string();
        let [api, mesh, dns] = addresses.map(|address| address.to_string());
        let arguments = ["registry", "--data-dir", &folder, "--api", &api, "--mesh", &mesh, "--dns", &dns];
        let process =
            Process::pillion("registry", arguments.into_iter().chain(more.iter().map(String::as_str)));
        let api = process.bound("api").await;
        let mesh = process.bound("mesh").await;
        let dns = process.bound("dns").await;
        let finished = run(["wait", "--address", &api.to_string()]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        Self { process, api, mesh, dns, data: data.to_owned(), more }
    }

    /// Kills it as a crash would, and starts it again on the same data and ports.
    pub async fn crash_and_restart(self) -> Self {
        self.crash().await.restart().await
    }

    /// Kills it as a crash would.
    pub async fn crash(self) -> Crashed {
        let Self { process, api, mesh, dns, data, more } = self;
        process.kill().await;
        Crashed { addresses: [api, mesh, dns], data, more }
    }

    /// Tells it to end, and waits until it has.
    pub async fn stop(self) -> Crashed {
        let Self { mut process, api, mesh, dns, data, more } = self;
        process.signal(Signal::TERM);
        let status = process.exit(DEADLINE).await;
        assert!(status.success(), "{status}: {}", process.output());
        Crashed { addresses: [api, mesh, dns], data, more }
    }

    /// Runs a command of `pillion` against it.
    pub async fn cli(&self, arguments: &[&str]) -> Finished {
        let api = format!("http://{}", self.api);
        let data = self.data.display().to_string();
        run(arguments.iter().copied().chain(["--api", &api, "--data-dir", &data])).await
    }

    /// Applies resources.
    ///
    /// # Panics
    ///
    /// If they are refused.
    pub async fn apply(&self, yaml: &str) {
        let file = self.data.join("applied.yaml");
        std::fs::write(&file, yaml).expect("the data directory can be written");
        let finished = self.cli(&["apply", "-f", &file.display().to_string()]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
    }

    /// Waits until a service (`name.namespace`) has so many instances that take traffic.
    pub async fn serving(&self, service: &str, count: usize) {
        let (name, namespace) = service.split_once('.').expect("name.namespace");
        let path = format!("/v1/namespaces/{namespace}/services/{name}/instances?healthy=true");
        eventually(&format!("{service} has {count} instances"), DEADLINE, || async {
            let answer = self.get(&path).await;
            let found = answer.json()["instances"].as_array().map_or(0, Vec::len);
            if found == count { Ok(()) } else { Err(format!("{found}: {answer:?}")) }
        })
        .await;
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
        self.send(::http::Method::PUT, path, body).await
    }

    /// Posts JSON to the API.
    ///
    /// # Panics
    ///
    /// If there is no answer.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> Answer {
        self.send(::http::Method::POST, path, body).await
    }

    async fn send(&self, method: ::http::Method, path: &str, body: &serde_json::Value) -> Answer {
        let request = ::http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.api.to_string())
            .header("content-type", "application/json")
            .body(bytes::Bytes::from(body.to_string()))
            .expect("a valid request");
        http::send(self.api, request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// What is left of a registry that was killed or stopped.
#[derive(Debug)]
pub struct Crashed {
    addresses: [SocketAddr; 3],
    data: PathBuf,
    more: Vec<String>,
}

impl Crashed {
    /// Starts it again, on the same data and ports.
    pub async fn restart(self) -> Registry {
        Registry::start_at(&self.data, self.addresses, self.more).await
    }
}
