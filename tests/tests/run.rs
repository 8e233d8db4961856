//! `pillion run`: a program as it is, with a sidecar beside it.

use std::path::Path;
use std::sync::Arc;

use pillion_tests::support::app::{App, status};
use pillion_tests::support::ports::free_port;
use pillion_tests::support::process::finish_command;
use pillion_tests::support::{DEADLINE, Process, Registry, Sidecar, eventually, peer, pillion};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::Notify;

/// `pillion run` of a command.
fn run(registry: &Registry, service: &str, port: &str, more: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(pillion());
    command.args(["run", "--registry", &registry.mesh.to_string(), "--advertise", "127.0.0.1"]);
    command.args(["--service", service, "--port", port]).args(more).arg("--").args(words);
    command
}

/// A program that serves files, beside its sidecar, as in the README.
async fn file_server(registry: &Registry, python: &Path, folder: &Path) -> (Process, String) {
    let port = free_port().to_string();
    let words =
        [text(python), "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", text(folder)];
    let process = Process::spawn("hello", run(registry, "hello", &port, &[], &words));
    registry.serving("hello.default", 1).await;
    (process, port)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[tokio::test]
async fn the_commands_exit_code_is_kept() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    for (words, want) in [
        (&["sh", "-c", "exit 0"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -9 $$"], 128 + 9),
    ] {
        let finished = finish_command(run(&registry, "job", "1", &[], words)).await;
        assert_eq!(finished.code, want, "{words:?}: {finished:?}");
    }
    let missing = finish_command(run(&registry, "job", "1", &[], &["no-such-program"])).await;
    assert!(missing.code != 0 && missing.stderr.contains("no-such-program"), "{missing:?}");
    eventually("no instance is left", DEADLINE, || async {
        let listed = registry.cli(&["get", "instances", "job", "-o", "json"]).await;
        if listed.stdout.trim() == "[]" { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await;
}

#[tokio::test]
async fn one_program_calls_another_by_its_plain_name() {
    let (Some(python), Some(curl)) = (peer("python3"), peer("curl")) else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::write(files.path().join("greeting"), "hello from a plain program\n").expect("written");
    let registry = Registry::start(data.path()).await;
    let (_hello, port) = file_server(&registry, &python, files.path()).await;
    let root = rustix::process::geteuid().is_root();
    for names in ["auto", "dns", "proxy"] {
        if names == "dns" && !root {
            continue; // a private resolv.conf needs a mount namespace
        }
        for name in ["hello.default.mesh.internal", "hello.mesh.internal"] {
            let url = format!("http://{name}:{port}/greeting");
            let words = [text(&curl), "-s", "--max-time", "20", &url];
            let mut command = run(&registry, "caller", "1", &["--names", names], &words);
            command.env_remove("http_proxy").env_remove("no_proxy");
            let finished = finish_command(command).await;
            assert_eq!(finished.code, 0, "{names} {name}: {finished:?}");
            assert_eq!(finished.stdout, "hello from a plain program\n", "{names} {name}: {finished:?}");
        }
    }
}

#[tokio::test]
async fn the_command_is_told_where_its_sidecar_is() {
    let Some(curl) = peer("curl") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let script = format!(
        "{curl} -sf $PILLION_METRICS_URL/ready >/dev/null && {curl} -sf $PILLION_ADMIN_URL/metrics >/dev/null \
         && echo $PILLION_PROXY $PILLION_DNS_SERVER",
        curl = curl.display()
    );
    let finished =
        finish_command(run(&registry, "job", "1", &["--names", "none"], &["sh", "-c", &script])).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let mut told = finished.stdout.split_whitespace();
    let proxy = told.next().and_then(|url| url.strip_prefix("http://")).expect("an outbound port");
    proxy.parse::<std::net::SocketAddr>().unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    let dns = told.next().expect("a DNS server");
    dns.parse::<std::net::SocketAddr>().unwrap_or_else(|error| panic!("{error}: {finished:?}"));
}

#[tokio::test]
async fn sigterm_lets_requests_in_flight_finish_before_the_command_is_told() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let app = App::with(move |_seen| {
        let gate = Arc::clone(&opened);
        async move {
            gate.notified().await;
            status(200)
        }
    })
    .await;
    // The command only stays; the application is ours, so that the test decides when it answers.
    let words = ["sh", "-c", "trap 'echo told; exit 5' TERM; while :; do sleep 0.05; done"];
    let mut slow = Process::spawn("slow", run(&registry, "slow", &app.port(), &[], &words));
    registry.serving("slow.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    let host = format!("slow.default.mesh.internal:{}", app.port());
    let (answer, ()) = tokio::join!(web.get(&host, "/"), async {
        eventually("the application is asked", DEADLINE, || async {
            if app.seen().is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await;
        slow.signal(Signal::TERM);
        registry.serving("slow.default", 0).await;
        assert!(!slow.output().contains("told"), "the command was told too early: {}", slow.output());
        gate.notify_one();
    });
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let ended = slow.exit(DEADLINE).await;
    assert_eq!(ended.code(), Some(5), "{}", slow.output());
    assert!(slow.output().contains("told"), "{}", slow.output());
}

#[tokio::test]
async fn told_twice_to_end_it_does_not_wait_for_requests_in_flight() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let app = App::with(|_seen| std::future::pending()).await;
    let words = ["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"];
    let mut stuck = Process::spawn("stuck", run(&registry, "stuck", &app.port(), &[], &words));
    registry.serving("stuck.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    let host = format!("stuck.default.mesh.internal:{}", app.port());
    let (_answer, ()) = tokio::join!(web.get(&host, "/"), async {
        eventually("the application is asked", DEADLINE, || async {
            if app.seen().is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await;
        stuck.signal(Signal::TERM);
        registry.serving("stuck.default", 0).await;
        stuck.signal(Signal::TERM);
        let ended = stuck.exit(DEADLINE).await;
        assert_eq!(ended.code(), Some(5), "{}", stuck.output());
        assert!(stuck.output().contains("told twice to end"), "{}", stuck.output());
    });
}
