//! What Envoy does is what Pillion does: `docs/parity.md`.

use pillion_tests::parity::run_all;
use pillion_tests::support::peer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_configuration_does_the_same() {
    if peer("envoy").is_none() {
        return;
    }
    let summary = run_all(&std::env::var("PILLION_PARITY").unwrap_or_default()).await;
    println!("{summary}");
    assert!(summary.is_good(), "Pillion differs from Envoy; what differs stands above");
}
