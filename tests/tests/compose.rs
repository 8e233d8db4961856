//! docker/compose.yaml, from `up` to `down`, as whoever reads docs/containers.md runs it.

use std::time::Duration;

use pillion_tests::support::{Compose, DEADLINE, eventually, peer};
use serde_json::Value;

#[tokio::test]
async fn mesh_in_containers_survives_a_killed_instance_and_a_restarted_registry() {
    let (Some(curl), Some(dig), Some(python)) = (peer("curl"), peer("dig"), peer("python3")) else { return };
    let Some(compose) = Compose::up().await else { return };
    let shop = Shop::open(&compose).await;
    shop.takes_requests(&compose, 20).await;

    // By its proxy: whom orders saw is told by the client certificate alone.
    let ask = async |from: &str, host: &str| {
        let url = format!("http://{host}.shop.mesh.internal/");
        let words = ["--silent", "--proxy", "http://127.0.0.1:15001", "--write-out", "%{http_code}", &url];
        compose.inside(from, &curl, &words).await.stdout
    };
    let orders = ask("shopper-sidecar", "orders").await;
    assert!(orders.contains(r#""caller":"spiffe://mesh.internal/ns/shop/svc/shopper""#), "{orders}");
    let front = ask("shopper-sidecar", "front").await;
    assert!(front.contains(r#""caller":"spiffe://mesh.internal/ns/shop/svc/front""#), "{front}");
    let refused = ask("shopper-sidecar", "payments").await;
    assert_eq!(refused, "RBAC: access denied403");

    // Nobody gets past the sidecar: in clear text it is closed, and the application is on loopback.
    let address = compose.address("orders-v1-1-sidecar").await;
    for port in [15006, 8080] {
        let url = format!("http://{address}:{port}/");
        let direct = compose.inside("shopper-sidecar", &curl, &["--silent", "--max-time", "5", &url]).await;
        assert_ne!(direct.code, 0, "port {port}: {direct:?}");
    }

    // Raw TCP, by the address that the sidecar's DNS gives the application.
    let words = ["@127.0.0.1", "+short", "clock.shop.mesh.internal"];
    let vip = compose.inside("shopper", &dig, &words).await.stdout.trim().to_owned();
    let talk = format!("import socket; print(socket.create_connection(('{vip}', 7000), 5).recv(100))");
    let greeting = compose.inside("shopper", &python, &["-c", &talk]).await;
    assert!(greeting.stdout.contains("clock clock-1"), "{vip}: {greeting:?}");

    // An instance dies with its sidecar.
    let before = shop.stats(&compose).await;
    for service in ["orders-v1-2", "orders-v1-2-sidecar"] {
        let killed = compose.docker(&["kill", &compose.container(service).await]).await;
        assert_eq!(killed.code, 0, "{killed:?}");
    }
    shop.takes_requests(&compose, 60).await;
    assert_eq!(shop.failed_since(&compose, &before).await, 0, "when an instance died");

    // The registry comes again, and the sidecars to it.
    let restarted = compose.run(&["restart", "registry"]).await;
    assert_eq!(restarted.code, 0, "{restarted:?}");
    eventually("the sidecars are connected again", DEADLINE, || async {
        let listed = compose.cli(&["get", "proxies", "--output", "json"]).await;
        let nodes = listed.stdout.matches("shop/").count();
        if nodes >= 6 { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await;
    shop.takes_requests(&compose, 20).await;
    assert_eq!(shop.failed_since(&compose, &before).await, 0, "when the registry was restarted");

    if compose.prometheus {
        scraped(&compose).await;
    }
    assert_eq!(compose.down().await, "", "what `down` leaves");
}

/// What the traffic source tells.
struct Shop {
    source: std::net::SocketAddr,
}

impl Shop {
    async fn open(compose: &Compose) -> Self {
        Self { source: compose.published("shopper-sidecar", 8080).await }
    }

    async fn stats(&self, compose: &Compose) -> Value {
        let told = eventually("the traffic source tells", DEADLINE, || compose.get(self.source, "/stats"));
        told.await
    }

    /// Waits until `count` more requests were answered well.
    async fn takes_requests(&self, compose: &Compose, count: u64) {
        let before = self.stats(compose).await["ok"].as_u64().unwrap_or_default();
        eventually("requests are answered", Duration::from_secs(60), || async {
            let stats = self.stats(compose).await;
            if stats["ok"].as_u64() >= Some(before + count) { Ok(()) } else { Err(stats) }
        })
        .await;
    }

    async fn failed_since(&self, compose: &Compose, before: &Value) -> u64 {
        let now = self.stats(compose).await;
        let failed = |stats: &Value| stats["failed"].as_u64().expect("a count");
        let more = failed(&now) - failed(before);
        if more > 0 {
            // What the caller's sidecar counted tells why.
            let metrics = ["--silent", "http://127.0.0.1:15020/metrics"];
            let curl = peer("curl").expect("is here");
            let metrics = compose.inside("front-sidecar", &curl, &metrics).await.stdout;
            let counted = metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            eprintln!("{now:#}\n{}", counted.collect::<Vec<_>>().join("\n"));
        }
        more
    }
}

/// Prometheus finds the registry and, by the registry, every sidecar that lives.
async fn scraped(compose: &Compose) {
    let prometheus = compose.published("prometheus", 9090).await;
    eventually("Prometheus scrapes the registry and six sidecars", DEADLINE, || async {
        let up = compose.get(prometheus, "/api/v1/query?query=up==1").await?;
        let found = up["data"]["result"].as_array().map_or(0, Vec::len);
        if found >= 7 { Ok(()) } else { Err(format!("{up}")) }
    })
    .await;
    let query = "/api/v1/query?query=sum(pillion_requests_total)";
    let sum = compose.get(prometheus, query).await.expect("an answer");
    let sum = sum["data"]["result"][0]["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
    assert!(sum > Some(100.0), "{sum:?}");
}
