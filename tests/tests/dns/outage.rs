//! The store away: answers go on, and say so.

use pillion_tests::support::process::finish;
use pillion_tests::support::{DEADLINE, Etcd, Registry, eventually, peer};
use serde_json::json;

#[tokio::test]
async fn answers_are_marked_stale_while_etcd_is_stopped() {
    let Some(dig) = peer("dig") else { return };
    let Some(mut etcd) = Etcd::start().await else { return };
    let data = tempfile::tempdir().expect("a folder");
    let store = etcd.store("dns");
    let registry = Registry::start_with(data.path(), &["--open", "--store", &store]).await;
    let body = json!({"address": "10.0.0.5", "port": 8080, "ttl": "1h"});
    let answer = registry.put("/v1/namespaces/shop/services/orders/instances/orders-1", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let port = registry.dns.port().to_string();
    let ask = async |words: &str| {
        let fixed = ["@127.0.0.1", "-p", &port, "+tries=2", "+time=2"];
        finish(&dig, fixed.into_iter().chain(words.split(' '))).await.stdout
    };
    // Ready as bytes, over TCP, and what there is not.
    let questions = [
        ("orders.shop.mesh.internal A", "10.0.0.5"),
        ("+tcp orders.shop.mesh.internal A", "10.0.0.5"),
        ("nobody.shop.mesh.internal A", "NXDOMAIN"),
    ];
    for (at, marked) in [false, true, false].into_iter().enumerate() {
        match at {
            0 => {}
            1 => etcd.stop().await,
            _ => etcd.resume_from_disk().await,
        }
        eventually(&format!("answers are marked: {marked}"), DEADLINE, || async {
            for (question, want) in questions {
                let answer = ask(question).await;
                assert!(answer.contains(want), "{question}: {answer}");
                if answer.contains("EDE: 3 (Stale Answer)") != marked {
                    return Err(answer);
                }
            }
            Ok(())
        })
        .await;
    }
}
