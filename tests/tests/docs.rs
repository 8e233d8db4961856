//! The guide's commands as they are written, in their order, against real processes.
//!
//! Only addresses and folders are others than on the page. What a page starts to stay, a registry or a
//! sidecar, is started here and ended with the test.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use pillion_tests::support::binary::repository;
use pillion_tests::support::process::finish_command;
use pillion_tests::support::{App, Process, Registry, peer, pillion};
use tokio::process::Command;

/// Text of the page and what stands for it here.
type Replaced = Vec<(String, String)>;

/// A page and where its commands are run.
struct Page {
    text: String,
    folder: tempfile::TempDir,
    replaced: Replaced,
    environment: Vec<(&'static str, String)>,
    /// What the page has started.
    running: Vec<Process>,
}

impl Page {
    /// A page of the repository, for a reader on the registry's machine.
    fn open(file: &str, registry: &Registry, data: &Path) -> Self {
        let text = std::fs::read_to_string(repository().join(file)).expect("the page can be read");
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(repository().join("examples"), folder.path().join("examples"))
            .expect("linked");
        let secrets = folder.path().display().to_string();
        let replaced = [
            ("127.0.0.1:7070", registry.api.to_string()),
            ("127.0.0.1:7071", registry.mesh.to_string()),
            ("-p 7053", format!("-p {}", registry.dns.port())),
            ("registry.example.com", registry.mesh.to_string()),
            ("/run/secrets", secrets),
        ];
        let any = || "127.0.0.1:0".to_owned();
        let environment = vec![
            ("PATH", path_with_pillion()),
            ("PILLION_API", format!("http://{}", registry.api)),
            ("PILLION_DATA_DIR", data.display().to_string()),
            ("PILLION_INBOUND", any()),
            ("PILLION_OUTBOUND", any()),
            ("PILLION_ADMIN", any()),
            ("PILLION_METRICS", any()),
            ("PILLION_DNS", any()),
        ];
        let replaced = replaced.map(|(page, here)| (page.to_owned(), here)).into();
        Self { text, folder, replaced, environment, running: Vec::new() }
    }

    /// The lines of the blocks of `sh` below these headings; all of them without any.
    fn commands(&self, headings: &[&str]) -> Vec<String> {
        let (mut lines, mut open, mut wanted) = (Vec::new(), None, headings.is_empty());
        for line in self.text.lines() {
            match (line.strip_prefix("```"), open) {
                (Some(_), Some(_)) => open = None,
                (Some(language), None) => open = Some(language == "sh"),
                (None, Some(true)) if wanted => lines.push(line.to_owned()),
                (None, None) => {
                    if let Some(heading) = line.strip_prefix("## ") {
                        wanted = headings.is_empty() || headings.contains(&heading);
                    }
                }
                (None, _) => {}
            }
        }
        assert!(!lines.is_empty(), "no commands below {headings:?}: are the headings still these?");
        lines
    }

    fn replace(&mut self, page: &str, here: String) {
        self.replaced.push((page.to_owned(), here));
    }

    fn here(&self, line: &str) -> String {
        self.replaced.iter().fold(line.to_owned(), |line, (page, here)| line.replace(page, here))
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        // The shell becomes the command, so that ending it ends the command.
        command.args(["-c", line]).current_dir(self.folder.path()).kill_on_drop(true);
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs a command to its end, which must be a good one; what it printed.
    async fn run(&self, line: &str) -> String {
        let here = self.here(line);
        let mut command = self.command(&here);
        command.stdin(Stdio::null());
        let finished = finish_command(command).await;
        let differs = line.starts_with("pillion diff"); // 1 says that there is a difference
        assert!(finished.code == 0 || (differs && finished.code == 1), "{here}: {finished:?}");
        finished.stdout
    }

    /// Starts a sidecar that stays; where the next commands find it.
    async fn start(&mut self, line: &str) {
        let here = self.here(line);
        let process = Process::spawn(line, self.command(&format!("exec {here}")));
        let (outbound, metrics) = (process.bound("outbound").await, process.bound("metrics").await);
        self.replace("127.0.0.1:15001", outbound.to_string());
        let admin = process.bound("admin").await;
        self.replace("pillion drain", format!("pillion drain --admin {admin}"));
        self.environment.push(("PILLION_READY_ADDRESS", metrics.to_string()));
        self.running.push(process);
        self.run("pillion wait").await;
    }
}

fn path_with_pillion() -> String {
    let folder = pillion().parent().map(PathBuf::from).expect("the binary is in a folder");
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}

#[tokio::test]
async fn getting_started() {
    let (Some(_), Some(_)) = (peer("curl"), peer("dig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let hello = App::start("hello").await;
    let mut page = Page::open("docs/getting-started.md", &registry, data.path());
    page.replace("8000", hello.port());
    let mut printed = String::new();
    for line in page.commands(&[]) {
        if line.starts_with("pillion registry") {
            continue; // it runs already
        }
        if line.starts_with("pillion proxy") {
            page.start(&line).await;
            if line.contains("hello") {
                registry.serving("hello.default", 1).await;
            }
        } else {
            printed += &page.run(&line).await;
        }
    }
    for want in ["orders-1", "10.0.0.5", "payments-callers", "spiffe://mesh.internal/ns/default/svc/hello"] {
        assert!(printed.contains(want), "no `{want}` in what the page's commands printed:\n{printed}");
    }
}

#[tokio::test]
async fn configuration() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let page = Page::open("docs/configuration.md", &registry, data.path());
    page.run("pillion apply -f examples/shop.yaml").await; // what the page's examples are taken from
    let yaml = page.text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    std::fs::write(page.folder.path().join("mesh.yaml"), yaml.expect("a block of yaml")).expect("written");
    for line in page.commands(&[]) {
        page.run(&line).await;
    }
    let schema = std::fs::read_to_string(page.folder.path().join("pillion.schema.json")).expect("written");
    assert!(serde_json::from_str::<serde_json::Value>(&schema).is_ok(), "{schema}");
    assert!(page.run("pillion get services").await.contains("orders"));
}

#[tokio::test]
async fn the_readme_puts_a_program_in() {
    let (Some(_), Some(_)) = (peer("python3"), peer("curl")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let mut page = Page::open("README.md", &registry, data.path());
    page.environment.push(("PILLION_REGISTRY", registry.mesh.to_string()));
    page.environment.push(("PILLION_ADVERTISE", "127.0.0.1".to_owned()));
    page.replace("8000", pillion_tests::support::ports::free_port().to_string());
    page.replace("8001", pillion_tests::support::ports::free_port().to_string());
    page.environment.retain(|(name, _)| *name != "PILLION_DNS"); // `run` chooses where it may answer
    let lines = page.commands(&["Put your own program in"]);
    let [_registry, server, caller] = &lines[..] else { panic!("other commands than expected: {lines:?}") };
    let started = Process::spawn("hello", page.command(&format!("exec {}", page.here(server))));
    registry.serving("hello.default", 1).await;
    let listing = page.run(caller).await;
    assert!(listing.contains("Directory listing"), "{listing}\n{}", started.output());
}
