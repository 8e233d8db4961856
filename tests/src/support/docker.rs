//! A container engine of our own: dockerd with its own folders and socket, which goes with the test.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use super::binary::repository;
use super::peer::{peer, skip};
use super::process::{Finished, Process, finish_command};
use super::wait::{DEADLINE, eventually};

/// A running engine.
#[derive(Debug)]
pub struct Docker {
    client: PathBuf,
    socket: String,
    // In this order: the engine ends before its folder goes.
    engine: Process,
    _folder: TempDir,
}

impl Docker {
    /// Starts an engine; `None` where there is none or the kernel refuses it, which has been said.
    pub async fn start() -> Option<Self> {
        let (engine, client) = (peer("dockerd")?, peer("docker")?);
        if !rustix::process::geteuid().is_root() {
            skip("dockerd", "it needs root");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let socket = format!("unix://{}", at("sock"));
        let arguments = [
            "--storage-driver=vfs".to_owned(), // runs on any file system
            format!("--data-root={}", at("data")),
            format!("--exec-root={}", at("exec")),
            format!("--pidfile={}", at("pid")),
            format!("--host={socket}"),
        ];
        let mut process = Process::program("dockerd", &engine, &arguments);
        let up = eventually("dockerd answers or ends", DEADLINE, || {
            let up = folder.path().join("sock").exists();
            let ended = process.has_ended();
            async move { if up || ended { Ok(!ended) } else { Err("neither yet") } }
        });
        if !up.await {
            // What is missing is the kernel's: namespaces, cgroups or a bridge.
            skip("dockerd", &format!("it does not start here:\n{}", process.output()));
            return None;
        }
        let docker = Self { client, socket, engine: process, _folder: folder };
        eventually("the engine answers", DEADLINE, || async {
            let finished = docker.run(&["version"]).await;
            if finished.code == 0 { Ok(()) } else { Err(finished.stderr) }
        })
        .await;
        Some(docker)
    }

    /// Runs `docker` against this engine.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(&self.client);
        command.args(arguments).env("DOCKER_HOST", &self.socket).env("DOCKER_BUILDKIT", "0");
        command.kill_on_drop(true);
        finish_command(command).await
    }

    /// Removes the containers and ends the engine in order, so that it leaves no mounts behind.
    pub async fn stop(mut self) {
        self.remove_containers();
        self.engine.signal(Signal::TERM);
        self.engine.exit(DEADLINE).await;
    }

    fn remove_containers(&self) {
        let docker = |arguments: &[&str]| {
            let mut command = std::process::Command::new(&self.client);
            command.args(arguments).env("DOCKER_HOST", &self.socket).output()
        };
        let listed = docker(&["ps", "--all", "--quiet"]).map(|output| output.stdout).unwrap_or_default();
        let listed = String::from_utf8_lossy(&listed);
        let ids: Vec<&str> = listed.split_whitespace().collect();
        if !ids.is_empty() {
            let _ = docker(&[&["rm", "--force", "--volumes"], &ids[..]].concat()); // the engine may be gone
        }
    }

    /// Builds our image from `docker/Dockerfile`; its name. `None` if the static binary is not built.
    ///
    /// # Panics
    ///
    /// If the image cannot be built.
    pub async fn image(&self) -> Option<&'static str> {
        const NAME: &str = "pillion:test";
        let context = repository().join("target/image");
        if !context.join("pillion").exists() {
            skip("dockerd", "the static binary is not built: cargo xtask image --only-context --profile dev");
            return None;
        }
        let file = repository().join("docker/Dockerfile");
        let built = self.run(&["build", "--tag", NAME, "--file", text(&file), text(&context)]).await;
        assert_eq!(built.code, 0, "{built:?}");
        Some(NAME)
    }
}

/// Also after a test that failed, no container is left running.
impl Drop for Docker {
    fn drop(&mut self) {
        if !self.engine.has_ended() {
            self.remove_containers();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the repository's path is UTF-8")
}
