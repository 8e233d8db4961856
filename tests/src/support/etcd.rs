//! A real etcd, alone or of several members, which a test may stop, pause, wipe and restore.

use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::peer::peer;
use super::ports::free_address;
use super::process::{Finished, Process, finish_command};
use super::wait::{DEADLINE, eventually};

/// One member with a data directory of its own. Ends with its test.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    folder: tempfile::TempDir,
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    /// All members, as etcd wants them.
    cluster: String,
    tls: Option<EtcdTls>,
    /// Of its file, in bytes.
    quota: Option<u64>,
    process: Option<Process>,
}

/// Files for connections of clients, who need a certificate too.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// Who signs everybody's certificate.
    pub ca: PathBuf,
    /// The certificate, and its key, with which etcd serves and `etcdctl` asks.
    pub certificate: (PathBuf, PathBuf),
}

impl Etcd {
    /// Starts one; `None` if etcd is not installed, which has been said.
    pub async fn start() -> Option<Self> {
        Self::cluster(1).await?.pop()
    }

    /// Starts one that asks clients for a certificate.
    pub async fn start_with_tls(tls: EtcdTls) -> Option<Self> {
        let mut etcd = Self::members(1)?.pop()?;
        etcd.tls = Some(tls);
        etcd.resume_from_disk().await;
        Some(etcd)
    }

    /// Starts one that takes no more writes when its file has so many bytes.
    pub async fn start_with_quota(bytes: u64) -> Option<Self> {
        let mut etcd = Self::members(1)?.pop()?;
        etcd.quota = Some(bytes);
        etcd.resume_from_disk().await;
        Some(etcd)
    }

    /// Starts so many members of one cluster.
    pub async fn cluster(count: usize) -> Option<Vec<Self>> {
        let mut members = Self::members(count)?;
        members.iter_mut().for_each(Self::spawn);
        for member in &members {
            member.serves().await;
        }
        Some(members)
    }

    fn members(count: usize) -> Option<Vec<Self>> {
        let program = peer("etcd")?;
        let member = |n: usize| Self {
            program: program.clone(),
            folder: tempfile::tempdir().expect("a folder"),
            name: format!("m{n}"),
            client: free_address(),
            peer: free_address(),
            cluster: String::new(),
            tls: None,
            quota: None,
            process: None,
        };
        let mut members: Vec<_> = (0..count).map(member).collect();
        let cluster = members.iter().map(|member| format!("{}=http://{}", member.name, member.peer));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        members.iter_mut().for_each(|member| member.cluster.clone_from(&cluster));
        Some(members)
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
        self.spawn();
        self.serves().await;
    }

    fn spawn(&mut self) {
        let data = self.data().display().to_string();
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let mut arguments = vec![
            ["--name", &self.name],
            ["--data-dir", &data],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &self.cluster],
            ["--log-level", "error"],
        ];
        let quota = self.quota.map(|bytes| bytes.to_string());
        arguments.extend(quota.iter().map(|bytes| ["--quota-backend-bytes", bytes]));
        let files = self.tls.as_ref().map(EtcdTls::files);
        if let Some([ca, certificate, key]) = &files {
            arguments.extend([
                ["--client-cert-auth", "true"],
                ["--trusted-ca-file", ca],
                ["--cert-file", certificate],
                ["--key-file", key],
            ]);
        }
        // A flag that is true or false takes its value with `=` only.
        let arguments = arguments.iter().map(|[flag, value]| format!("{flag}={value}"));
        self.process = Some(Process::program("etcd", &self.program, arguments));
    }

    async fn serves(&self) {
        let health = || async {
            let finished = self.ctl(&["endpoint", "health"]).await;
            if finished.code == 0 { Ok(()) } else { Err(finished.stderr) }
        };
        eventually("etcd serves", DEADLINE, health).await;
    }

    fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.client)
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
        let arguments = ["snapshot", "restore", &file, "--data-dir", &data, "--name", &self.name];
        let more = ["--initial-cluster", &self.cluster, "--initial-advertise-peer-urls", &peer];
        let finished = self.ctl(&[&arguments[..], &more].concat()).await;
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
        let endpoint = format!("--endpoints={}", self.url());
        let program = peer("etcdctl").expect("etcdctl comes with etcd");
        let mut command = tokio::process::Command::new(program);
        if let Some([ca, certificate, key]) = self.tls.as_ref().map(EtcdTls::files) {
            command.args(["--cacert", &ca, "--cert", &certificate, "--key", &key]);
        }
        command.args(["--command-timeout=3s", &endpoint]).args(arguments);
        command.env("ETCDCTL_API", "3").kill_on_drop(true);
        finish_command(command).await
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl EtcdTls {
    /// The authority, the certificate, its key.
    fn files(&self) -> [String; 3] {
        [&self.ca, &self.certificate.0, &self.certificate.1].map(|file| file.display().to_string())
    }
}
