//! A real etcd, which a test may stop, pause, wipe and restore.

use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::peer::peer;
use super::process::{Finished, Process, finish_command};
use super::wait::{DEADLINE, eventually};

/// One member with a data directory of its own. Ends with its test.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    folder: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Process>,
}

impl Etcd {
    /// Starts one; `None` if etcd is not installed, which has been said.
    pub async fn start() -> Option<Self> {
        let program = peer("etcd")?;
        let folder = tempfile::tempdir().expect("a folder");
        let mut etcd = Self { program, folder, client: free(), peer: free(), process: None };
        etcd.resume_from_disk().await;
        Some(etcd)
    }

    /// Where clients connect, `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// As `--store` wants it, with this prefix.
    pub fn store(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.client)
    }

    /// Ends it at once; its data stay.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }

    /// Starts it again on its data, and waits until it serves.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub async fn resume_from_disk(&mut self) {
        let data = self.data().display().to_string();
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let cluster = format!("default={peer}");
        let arguments = [
            ["--data-dir", &data],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &cluster],
            ["--log-level", "error"],
        ];
        self.process = Some(Process::program("etcd", &self.program, arguments.iter().flatten()));
        let health = || async {
            let finished = self.ctl(&["endpoint", "health"]).await;
            if finished.code == 0 { Ok(()) } else { Err(finished.stderr) }
        };
        eventually("etcd serves", DEADLINE, health).await;
    }

    /// Stops it without a word: connections stay open, nothing is answered.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub async fn pause(&self) {
        let process = self.process.as_ref().expect("running");
        process.signal(Signal::STOP);
        let status = format!("/proc/{}/status", process.id());
        // The signal takes a moment to reach every thread.
        eventually("etcd is stopped", DEADLINE, || async {
            let text = std::fs::read_to_string(&status).map_err(|error| error.to_string())?;
            if text.contains("State:\tT") { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// Lets it go on.
    pub fn unpause(&self) {
        self.process.as_ref().expect("running").signal(Signal::CONT);
    }

    /// Starts it again without its data.
    pub async fn wipe(&mut self) {
        self.stop().await;
        std::fs::remove_dir_all(self.data()).expect("removed");
        self.resume_from_disk().await;
    }

    /// Saves a snapshot.
    pub async fn save(&self, file: &Path) {
        let file = file.display().to_string();
        let finished = self.ctl(&["snapshot", "save", &file]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
    }

    /// Starts it again from a snapshot.
    pub async fn restore(&mut self, file: &Path) {
        self.stop().await;
        std::fs::remove_dir_all(self.data()).expect("removed");
        let (file, data) = (file.display().to_string(), self.data().display().to_string());
        let peer = format!("http://{}", self.peer);
        let cluster = format!("default={peer}");
        let arguments = ["snapshot", "restore", &file, "--data-dir", &data, "--initial-cluster", &cluster];
        let arguments = arguments.into_iter().chain(["--initial-advertise-peer-urls", &peer]);
        let finished = self.ctl(&arguments.collect::<Vec<_>>()).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        self.resume_from_disk().await;
    }

    /// Forgets all history up to now.
    pub async fn compact(&self) {
        let revision = self.revision().await.to_string();
        let finished = self.ctl(&["compact", &revision]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
    }

    /// Its revision: rises with every write.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub async fn revision(&self) -> u64 {
        let finished = self.ctl(&["get", "nothing", "-w", "json"]).await;
        let answer: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        answer["header"]["revision"].as_u64().expect("a number")
    }

    /// Runs `etcdctl` against it.
    ///
    /// # Panics
    ///
    /// If etcdctl is missing.
    pub async fn ctl(&self, arguments: &[&str]) -> Finished {
        let endpoint = format!("--endpoints=http://{}", self.client);
        let program = peer("etcdctl").expect("etcdctl comes with etcd");
        let arguments = ["--command-timeout=3s", &endpoint].into_iter().chain(arguments.iter().copied());
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env("ETCDCTL_API", "3").kill_on_drop(true);
        finish_command(command).await
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}
