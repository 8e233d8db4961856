//! `pillion drain`: an instance is out of service before whatever stops it goes on.

use std::sync::Arc;

use pillion_tests::support::app::echo;
use pillion_tests::support::process::run;
use pillion_tests::support::{App, DEADLINE, Process, Registry, Sidecar, eventually};
use tokio::sync::Semaphore;

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const HOST: &str = "hello.mesh.internal";

#[tokio::test]
async fn drain_ends_once_what_was_in_flight_is_answered() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(HELLO).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let app = App::with(move |seen| {
        let held = Arc::clone(&held);
        async move {
            let _open = held.acquire().await.expect("the gate is never closed");
            echo("hello", &seen)
        }
    })
    .await;
    let hello = Sidecar::beside(&registry, "hello.default", app.address).await;
    let caller = Sidecar::caller(&registry, "caller.default").await;
    let admin = hello.admin.to_string();

    let drained = async {
        eventually("the application has the request", DEADLINE, || async {
            if app.seen().is_empty() { Err("nothing seen") } else { Ok(()) }
        })
        .await;
        // Whoever waits too short a time is told so; the proxy goes on.
        let finished = run(["drain", "--admin", &admin, "--timeout", "1"]).await;
        assert_eq!(finished.code, 1, "{finished:?}");
        assert!(finished.stderr.contains("no answer"), "{finished:?}");
        eventually("the registry has no instance", DEADLINE, || async {
            let listed = registry.cli(&["get", "instances", "hello", "-o", "json"]).await.stdout;
            if listed.trim() == "[]" { Ok(()) } else { Err(listed) }
        })
        .await;
        let mut drain = Process::pillion("drain", ["drain", "--admin", &admin]);
        assert!(!drain.has_ended(), "a request is still in flight");
        gate.add_permits(1);
        drain.exit(DEADLINE).await
    };
    let (answer, drained) = tokio::join!(caller.get(HOST, "/slow"), drained);
    assert_eq!(answer.expect("an answer").status, 200);
    assert!(drained.success(), "{drained:?}");

    // The sidecar lives on for its application's own calls, and draining again is done at once.
    let again = run(["drain", "--admin", &admin]).await;
    assert_eq!(again.code, 0, "{again:?}");
    hello.get_until(HOST, "/", 503).await;
    caller.get_until(HOST, "/", 503).await;
    assert_eq!(app.seen().len(), 1);
}

#[tokio::test]
async fn drain_says_when_there_is_no_proxy() {
    let finished = run(["drain", "--admin", "127.0.0.1:1"]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("cannot reach http://127.0.0.1:1"), "{finished:?}");
}
