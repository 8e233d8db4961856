//! The registry's DNS, asked by dig and kdig.

use pillion_tests::support::binary::repository;
use pillion_tests::support::process::finish;
use pillion_tests::support::{DEADLINE, Registry, eventually, peer};
use serde_json::json;

#[tokio::test]
async fn names_are_answered_and_denied_as_dig_reads_it() {
    let (Some(dig), Some(kdig)) = (peer("dig"), peer("kdig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let applied =
        registry.cli(&["apply", "-f", &repository().join("examples/shop.yaml").display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let body = json!({"address": "10.0.0.5", "ports": {"http": {"port": 8080}}, "labels": {"version": "v1"}});
    let answer = registry.put("/v1/namespaces/shop/services/orders/instances/orders-1", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");

    let port = registry.dns.port().to_string();
    let dig = async |words: &str| {
        let fixed = ["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"];
        finish(&dig, fixed.into_iter().chain(words.split(' '))).await.stdout
    };
    eventually("the instance is in DNS", DEADLINE, || async {
        let answer = dig("+short orders.shop.mesh.internal A").await;
        if answer.trim() == "10.0.0.5" { Ok(()) } else { Err(answer) }
    })
    .await;
    for (question, wants) in [
        (
            "orders.shop.mesh.internal A",
            &["status: NOERROR", "10.0.0.5", " 5 IN A 10.0.0.5", "flags: qr aa"][..],
        ),
        ("ORDERS.Shop.mesh.INTERNAL A", &["ORDERS.Shop.mesh.INTERNAL.", "10.0.0.5"]),
        ("orders.shop.svc.mesh.internal A", &["10.0.0.5"]),
        ("v1.sub.orders.shop.mesh.internal A", &["10.0.0.5"]),
        ("orders-1.inst.orders.shop.mesh.internal A", &["10.0.0.5"]),
        ("_http._tcp.orders.shop.mesh.internal SRV", &[" IN SRV ", "8080"]),
        ("-x 10.0.0.5", &[" IN PTR ", "orders"]),
        ("orders.shop.mesh.internal AAAA", &["status: NOERROR", "ANSWER: 0", " IN SOA "]),
        ("payments.shop.mesh.internal A", &["status: NOERROR", "ANSWER: 0", " IN SOA "]),
        ("v2.sub.orders.shop.mesh.internal A", &["status: NOERROR", "ANSWER: 0"]),
        ("nobody.shop.mesh.internal A", &["status: NXDOMAIN", " IN SOA "]),
        ("mesh.internal SOA", &["status: NOERROR", " IN SOA "]),
        ("mesh.internal NS", &["status: NOERROR", " IN NS "]),
        ("example.com A", &["status: REFUSED"]),
        ("+tcp orders.shop.mesh.internal A", &["10.0.0.5", "(TCP)"]),
    ] {
        let answer = dig(question).await;
        let plain = answer.split_whitespace().collect::<Vec<_>>().join(" "); // dig aligns by tabs
        for want in wants {
            assert!(plain.contains(want), "{question}: no `{want}` in\n{answer}");
        }
    }
    let answer =
        finish(&kdig, ["@127.0.0.1", "-p", &port, "+tcp", "+edns", "orders.shop.mesh.internal", "A"]).await;
    assert!(answer.stdout.contains("10.0.0.5") && answer.stdout.contains("EDNS PSEUDOSECTION"), "{answer:?}");
}
