//! What goes over the wire between two sidecars, captured: never anything readable, from the first moment on
//! and while the root changes.

use bytes::Bytes;
use pillion_tests::support::peer::{script, skip};
use pillion_tests::support::ports::free_address;
use pillion_tests::support::{App, DEADLINE, Load, Plan, Process, Registry, Sidecar, eventually, peer};
use rustix::process::Signal;

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "hello.default.mesh.internal";
const CANARY: &str = "what-nobody-else-may-read";
/// Requests per second.
const RATE: u32 = 20;

#[tokio::test]
async fn nothing_readable_goes_between_sidecars_at_the_start_and_in_a_rotation() {
    let Some(python) = peer("python3") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(data.path(), &["--open", "--certificate-lifetime", "10s"]).await;
    registry.apply(HELLO).await;
    let app = App::with(async |_| http::Response::new(Bytes::from_static(CANARY.as_bytes()))).await;
    let inbound = free_address();
    let (tls, plain) = (inbound.port().to_string(), app.port());
    let mut capture = Process::program("capture", &python, [&script("capture.py"), &tls, &plain, CANARY]);
    let begun = capture.line("capturing", |line| match line {
        "capturing" => Some(true),
        "not permitted" => Some(false),
        _ => None,
    });
    if !begun.await {
        return skip("python3", "packets may not be captured here");
    }
    let web = Sidecar::caller(&registry, "web.default").await;
    // From before there is anybody to answer.
    let load = Load::start(web.outbound, NAME, RATE);
    let _hello = Plan::new(registry.mesh, "hello.default", &plain).inbound(inbound).start().await;
    web.get_until(NAME, "/", 200).await;
    let rotated = registry.cli(&["ca", "rotate"]).await;
    assert_eq!(rotated.code, 0, "{rotated:?}");
    eventually("the root has rotated", DEADLINE, || async {
        let status = registry.cli(&["ca", "status", "-o", "json"]).await.stdout;
        let json: serde_json::Value = serde_json::from_str(&status).map_err(|error| error.to_string())?;
        let roots = json["roots"].as_array().map_or(0, Vec::len);
        if json["step"] == "steady" && roots == 2 { Ok(()) } else { Err(status) }
    })
    .await;
    web.get_until(NAME, "/", 200).await;
    drop(load.stop().await);
    capture.signal(Signal::TERM);
    let saw = capture.line("what was seen", |line| line.strip_prefix("saw ").map(str::to_owned)).await;
    capture.exit(DEADLINE).await;
    let saw: serde_json::Value = serde_json::from_str(&saw).expect("JSON");
    let of = |what: &str| saw[what].as_u64().expect("a number");
    assert!(of("handshakes") > 2 && of("compared") > 0, "it captured nothing: {saw}");
    assert_eq!((of("http"), of("canaries")), (0, 0), "{saw}");
}
