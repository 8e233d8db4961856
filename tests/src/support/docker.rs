//! A container engine of our own: dockerd with its own folders and socket, which goes with the test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use super::binary::repository;
use super::peer::{peer, skip};
use super::process::{Finished, Process, finish, finish_command, finish_within};
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
        // Without --storage-driver it takes the best that the file system allows.
        let arguments = [
            "--log-level=warn".to_owned(),
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
        finish_command(self.command(&self.client, arguments)).await
    }

    /// A program that is to speak with this engine.
    pub(super) fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("DOCKER_HOST", &self.socket).env("DOCKER_BUILDKIT", "0");
        command.kill_on_drop(true);
        command
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
        let context =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        let context = context.join("image");
        if !context.join("pillion").exists() {
            skip("dockerd", "the static binary is not built: cargo xtask image --only-context --profile dev");
            return None;
        }
        let file = repository().join("docker/Dockerfile");
        self.build(NAME, &file, &context).await;
        Some(NAME)
    }

    /// An image with nothing but a program that is installed here, and the libraries it needs; its
    /// name. For programs whose public image would have to be downloaded.
    ///
    /// # Panics
    ///
    /// If the image cannot be built.
    pub async fn image_of(&self, program: &Path) -> String {
        let context = tempfile::tempdir().expect("a folder");
        let linked = finish(Path::new("ldd"), [program]).await; // fails for a static program
        let libraries = linked.stdout.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([text(program)]).map(Path::new) {
            let copy = context.path().join("root").join(file.strip_prefix("/").expect("is absolute"));
            std::fs::create_dir_all(copy.parent().expect("has a folder")).expect("a folder");
            std::fs::copy(file, &copy).unwrap_or_else(|error| panic!("copy {}: {error}", file.display()));
        }
        let file = context.path().join("Dockerfile");
        let lines = format!("FROM scratch\nCOPY root /\nENTRYPOINT [\"{}\"]\n", text(program));
        std::fs::write(&file, lines).expect("a file");
        let name = program.file_name().and_then(|name| name.to_str()).expect("is UTF-8");
        let name = format!("{name}:test");
        self.build(&name, &file, context.path()).await;
        name
    }

    async fn build(&self, name: &str, file: &Path, context: &Path) {
        let arguments = ["build", "--tag", name, "--file", text(file), text(context)];
        let built = finish_within(BUILD_DEADLINE, self.command(&self.client, &arguments)).await;
        assert_eq!(built.code, 0, "{built:?}");
    }
}

/// How long an image may take: its context of a hundred megabytes is packed, sent and unpacked.
const BUILD_DEADLINE: Duration = Duration::from_secs(60);

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
