//! How `pillion run` starts, waits and fails, and how its command finds services.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pillion_tests::support::process::{finish, finish_command, run};
use pillion_tests::support::{App, DEADLINE, Process, Registry, Sidecar, peer, pillion};
use rustix::process::Signal;
use tokio::process::Command;

#[tokio::test]
async fn a_start_that_waits_says_for_what_and_ends_when_told() {
    let words = ["run", "--registry", "127.0.0.1:1", "--service", "job", "--port", "1", "--", "true"];
    for (signal, want) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut process = Process::pillion("run", words);
        process
            .line("what it waits for", |line| {
                line.contains("its sidecar waits for the registry at 127.0.0.1:1").then_some(())
            })
            .await;
        process.signal(signal);
        assert_eq!(process.exit(DEADLINE).await.code(), Some(want), "{}", process.output());
    }
}

#[tokio::test]
async fn wrong_usage_is_2_before_anything_starts() {
    for (arguments, want) in [
        (&["--registry", "a:b"][..], "--registry"),
        (&["--registry", "a", "--port", "1", "--port", "2"], "two ports are called `http`"),
        (&["--registry", "a", "--instance-id", "A b"], "--instance-id A b"),
        (&["--registry", "a", "--advertise", "http://a"], "--advertise"),
        (&["--registry", "a", "--admin", "0.0.0.0:1"], "--admin"),
        (&["--registry", "a", "--upstream", "orders"], "not of the form"),
    ] {
        let fixed = ["run", "--service", "job"].iter().chain(arguments).chain(&["--", "true"]);
        let finished = run(fixed).await;
        assert_eq!(finished.code, 2, "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(want), "{arguments:?}: {finished:?}");
    }
    for words in [&["run", "--", "true"][..], &["run", "--service", "NO", "--registry", "a", "--", "true"]] {
        let finished = run(words).await;
        assert_eq!(finished.code, 2, "{words:?}: {finished:?}");
        assert!(finished.stderr.contains("--service"), "{words:?}: {finished:?}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_started_is_127_or_126() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let plain = data.path().join("plain");
    std::fs::write(&plain, "no program").expect("written");
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).expect("allowed");
    let mesh = registry.mesh.to_string();
    for names in ["auto", "none"] {
        for (program, want) in [("no-such-program", 127), (plain.to_str().expect("UTF-8"), 126)] {
            let words = ["run", "--registry", &mesh, "--service", "job", "--names", names, "--", program];
            let finished = run(words).await;
            assert_eq!(finished.code, want, "{names} {program}: {finished:?}");
            assert!(finished.stderr.contains(program), "{names} {program}: {finished:?}");
        }
    }
}

/// A program that only calls has no port, and is no instance.
#[tokio::test]
async fn a_program_that_only_calls_needs_no_port() {
    let Some(curl) = peer("curl") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.default", app.address).await;
    let mesh = registry.mesh.to_string();
    let upstream = format!("0=orders:{}", app.port());
    let log = data.path().join("access.log").display().to_string();
    let fixed = ["run", "--registry", &mesh, "--service", "job", "--upstream", &upstream];
    let ask = format!("{} -s http://$PILLION_UPSTREAM_ORDERS/from-upstream", curl.display());
    let more = ["--access-log", &log, "--workers", "1", "--", "sh", "-c", &ask];
    let finished = run(fixed.iter().chain(&more)).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let page: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    assert_eq!(page["caller"], "spiffe://mesh.internal/ns/default/svc/job", "{finished:?}");
    let written = std::fs::read_to_string(&log).expect("flags reach the sidecar");
    assert!(written.contains("/from-upstream"), "{written}");
    let listed = registry.cli(&["get", "services"]).await;
    assert!(!listed.stdout.contains("job"), "{listed:?}");
}

/// Whoever is not root gets names by a private hosts file.
#[tokio::test]
async fn nobody_has_names_by_a_private_hosts_file() {
    let (Some(curl), Some(setpriv)) = (peer("curl"), peer("setpriv")) else { return };
    if !rustix::process::geteuid().is_root() || !may_unshare(&setpriv).await {
        pillion_tests::support::peer::skip("setpriv", "needs root, and user namespaces for others");
        return;
    }
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let _orders = Sidecar::beside(&registry, "orders.default", app.address).await;
    let hosts = std::fs::read_to_string("/etc/hosts").expect("readable");
    // Readable for everybody, unlike where tests are built.
    let binary = data.path().join("pillion");
    std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o755)).expect("allowed");
    std::fs::copy(pillion(), &binary).expect("copied");
    let mesh = registry.mesh.to_string();
    let url = format!("http://orders.default.mesh.internal:{}/x", app.port());
    let mut command = Command::new(&setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
    command.args(["run", "--registry", &mesh, "--service", "job", "--names", "hosts"]);
    command.args(["--dependency", "orders", "--"]).arg(&curl);
    command.args(["-s", "--noproxy", "*", "--max-time", "20", &url]).current_dir("/");
    let finished = finish_command(command).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let page: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    assert_eq!(page["caller"], "spiffe://mesh.internal/ns/default/svc/job", "{finished:?}");
    assert!(finished.stderr.contains("names: by a private hosts file"), "{finished:?}");
    assert_eq!(std::fs::read_to_string("/etc/hosts").expect("readable"), hosts, "the host's is as it was");
}

async fn may_unshare(setpriv: &Path) -> bool {
    let words = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm", "true"];
    finish(setpriv, words).await.code == 0
}
