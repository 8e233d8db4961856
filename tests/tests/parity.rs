//! What Envoy does is what Pillion does: `docs/parity.md`.

use pillion_tests::parity::{What, decide, other_envoy, run_all};
use pillion_tests::support::peer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_configuration_does_the_same() {
    if peer("envoy").is_none() {
        return;
    }
    let summary = run_all(&std::env::var("PILLION_PARITY").unwrap_or_default()).await;
    println!("{summary}");
    if let Some(other) = other_envoy() {
        println!("this is what differs from {}; it is a report, and fails nothing", other.display());
        return;
    }
    assert!(summary.is_good(), "Pillion differs from Envoy; what differs stands above");
}

/// Random configurations, `PILLION_DECISIONS` times (2000 unless set), from `PILLION_SEED`.
async fn random(what: What) {
    if peer("envoy").is_none() {
        return;
    }
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let seed = number("PILLION_SEED").unwrap_or_else(|| fastrand::u64(..));
    let decisions = usize::try_from(number("PILLION_DECISIONS").unwrap_or(2000)).expect("fits");
    let decided = decide(what, decisions, seed).await;
    println!("{decided}");
    assert!(decided.are_the_same(), "Pillion decides other than Envoy:\n{decided}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_policies_allow_the_same() {
    random(What::Policies).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_routes_match_the_same() {
    random(What::Routes).await;
}
