//! `pillion demo`: the tour holds, and nothing outlives it.

use std::time::Duration;

use pillion_tests::support::tree::{Descendant, descendants};
use pillion_tests::support::{DEADLINE, Process, eventually};
use rustix::process::Signal;

/// How long the whole tour may take.
const TOUR: Duration = Duration::from_secs(150);

#[tokio::test]
async fn the_tour_holds() {
    let mut demo = Process::pillion("demo", ["demo", "--once"]);
    let status = demo.exit(TOUR).await;
    let output = demo.output();
    assert!(status.success(), "{status}: {output}");
    assert!(output.contains("10 of 10 hold"), "{output}");
}

/// A running demo, and every process of it.
async fn running() -> (Process, Vec<Descendant>) {
    let demo = Process::pillion("demo", ["demo"]);
    demo.line("`Ctrl-C ends everything`", |line| line.contains("Ctrl-C ends everything").then_some(())).await;
    let all = descendants(demo.id());
    // A registry, and seven instances with a sidecar each.
    assert!(all.len() >= 15, "{all:#?}");
    (demo, all)
}

async fn all_gone(all: &[Descendant]) {
    eventually("no process is left", DEADLINE, || async {
        let left: Vec<_> = all.iter().filter(|process| process.runs()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_signal_ends_it_in_order_and_leaves_no_process_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let (mut demo, all) = running().await;
        demo.signal(signal);
        let status = demo.exit(DEADLINE).await;
        assert!(status.success(), "{signal:?}: {status}: {}", demo.output());
        all_gone(&all).await;
    }
}

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_processes_with_it() {
    let (demo, all) = running().await;
    demo.kill().await;
    all_gone(&all).await;
}
