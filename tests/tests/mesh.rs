//! Sidecars as processes: calls by name, in every way a program may make them, and who is seen calling.

use pillion_tests::support::process::{Finished, finish};
use pillion_tests::support::{App, Registry, Sidecar, peer};

const HELLO: &str = "kind: Service\nname: hello\nports: [{name: http, port: 8080, protocol: http}]\n";
const NAME: &str = "hello.default.mesh.internal";
const WEB: &str = "spiffe://mesh.internal/ns/default/svc/web";

/// A registry, `hello` with its sidecar, and the sidecar of `web`.
async fn mesh(data: &tempfile::TempDir) -> (Registry, App, [Sidecar; 2]) {
    let registry = Registry::start(data.path()).await;
    registry.apply(HELLO).await;
    let hello = App::start("hello").await;
    let server = Sidecar::beside(&registry, "hello.default", hello.address).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until(&format!("{NAME}:8080"), "/", 200).await;
    (registry, hello, [server, web])
}

/// The page that a curl fetched, which must have worked.
fn page(curl: &Finished) -> serde_json::Value {
    assert_eq!(curl.code, 0, "{curl:?}");
    serde_json::from_str(&curl.stdout).unwrap_or_else(|error| panic!("{error}: {curl:?}"))
}

#[tokio::test]
async fn a_call_by_name_carries_the_callers_identity_however_it_is_made() {
    let Some(curl) = peer("curl") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (_registry, hello, [_server, web]) = mesh(&data).await;
    let outbound = format!("http://{}", web.outbound);
    let url = format!("http://{NAME}:8080/a?b=c");
    let [short, kubernetes] = ["hello.mesh.internal", "hello.default.svc.mesh.internal"]
        .map(|name| format!("http://{name}:8080/a?b=c"));
    let (direct, host) = (format!("{outbound}/a?b=c"), format!("Host: {NAME}:8080"));
    for arguments in [
        &["-x", &outbound, &url][..],
        &["-x", &outbound, &short],
        &["-x", &outbound, &kubernetes],
        &["-x", &outbound, "--proxytunnel", &url],
        &["-H", &host, &direct],
        &["-H", &host, "--http2-prior-knowledge", &direct],
    ] {
        let fetched = finish(&curl, ["-s"].iter().chain(arguments)).await;
        let page = page(&fetched);
        assert_eq!(page["caller"], WEB, "{arguments:?}: {page}");
        assert_eq!(page["uri"], "/a?b=c", "{arguments:?}: {page}");
    }
    let seen = hello.seen();
    let last = seen.last().expect("calls arrived");
    assert!(last.headers().contains_key("x-request-id"), "{last:?}");
}

#[tokio::test]
async fn nobody_can_claim_to_be_another_caller() {
    let Some(curl) = peer("curl") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (_registry, _hello, [_server, web]) = mesh(&data).await;
    let (outbound, url) = (format!("http://{}", web.outbound), format!("http://{NAME}:8080/"));
    let forged = "x-forwarded-client-cert: URI=spiffe://mesh.internal/ns/default/svc/admin";
    let page = page(&finish(&curl, ["-s", "-x", &outbound, "-H", forged, &url]).await);
    let header = page["headers"]["x-forwarded-client-cert"].as_str().expect("the sidecar tells who calls");
    assert_eq!(page["caller"], WEB, "{page}");
    assert!(!header.contains("admin"), "{page}");
}

#[tokio::test]
async fn dns_answers_a_virtual_address_which_leads_into_the_mesh() {
    let (Some(curl), Some(dig)) = (peer("curl"), peer("dig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (registry, _hello, [_server, web]) = mesh(&data).await;
    // Several sidecars live on one host, each with addresses of its own.
    let shop = Sidecar::caller(&registry, "shop.default").await;
    let mut addresses = Vec::new();
    for (sidecar, service) in [(&web, "web"), (&shop, "shop")] {
        let address = sidecar.vip(&dig, NAME).await;
        let [first, second, ..] = address.octets();
        assert!(first == 127 && (64..128).contains(&second), "{address} is not in 127.64.0.0/10");
        for name in ["hello.mesh.internal", "hello.default.svc.mesh.internal", "HELLO.Default.mesh.internal"]
        {
            assert_eq!(sidecar.vip(&dig, name).await, address, "{name}");
        }
        let (resolve, url) = (format!("{NAME}:8080:{address}"), format!("http://{NAME}:8080/"));
        let by_name = page(&finish(&curl, ["-s", "--resolve", &resolve, &url]).await);
        let by_address = page(&finish(&curl, ["-s", &format!("http://{address}:8080/")]).await);
        for page in [by_name, by_address] {
            assert_eq!(page["caller"], format!("spiffe://mesh.internal/ns/default/svc/{service}"), "{page}");
        }
        addresses.push(address);
    }
    assert_ne!(addresses[0], addresses[1]);
}

#[tokio::test]
async fn a_name_nobody_has_is_not_there_until_somebody_registers() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let (registry, _hello, [_server, web]) = mesh(&data).await;
    let name = "late.default.mesh.internal";
    let port = web.dns.port().to_string();
    let answer = finish(&dig, ["@127.0.0.1", "-p", &port, name, "A"]).await;
    assert!(answer.stdout.contains("NXDOMAIN"), "{answer:?}");
    let missing = web.get(name, "/").await.expect("an answer");
    assert_ne!(missing.status, 200, "{missing:?}");

    let late = App::start("late").await;
    let host = format!("{name}:{}", late.port());
    let _server = Sidecar::beside(&registry, "late.default", late.address).await;
    let page = web.get_until(&host, "/", 200).await;
    assert_eq!(page.json()["caller"], WEB, "{page:?}");
}
