//! The part of Consul's API that readers use, also read by a client library of Consul.

use std::time::{Duration, SystemTime};

use pillion_tests::support::peer::script;
use pillion_tests::support::{DEADLINE, Process, Registry, eventually, http, peer};
use serde_json::{Value, json};

const ORDERS: &str = "/v1/namespaces/shop/services/orders/instances";

async fn register(registry: &Registry, id: &str, version: &str) {
    // The registry serves metrics itself, so that a scrape of the "instance" finds some.
    let (address, port) = (registry.api.ip().to_string(), registry.api.port());
    let body = json!({"address": address, "port": 80, "metricsPort": port, "labels": {"version": version}});
    let answer = registry.put(&format!("{ORDERS}/{id}"), &body).await;
    assert!(answer.status < 300, "{answer:?}");
}

fn index(answer: &http::Answer) -> u64 {
    let index = answer.headers.get("x-consul-index").and_then(|index| index.to_str().ok());
    index.and_then(|index| index.parse().ok()).unwrap_or_else(|| panic!("no index: {answer:?}"))
}

fn ids(answer: &http::Answer) -> Vec<String> {
    let page = answer.json();
    let id = |entry: &Value| entry["Service"]["ID"].as_str().expect("an id").to_owned();
    page.as_array().expect("a list").iter().map(id).collect()
}

#[tokio::test]
async fn instances_are_listed_filtered_and_waited_for_as_consul_does() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    register(&registry, "orders-1", "v1").await;
    register(&registry, "orders-2", "v2").await;
    let down = format!("{ORDERS}/orders-2/maintenance");
    let answer = registry.put(&down, &json!({})).await;
    assert!(answer.status < 300, "{answer:?}");

    let listed = registry.get("/v1/catalog/services").await;
    assert_eq!(listed.json(), json!({"orders.shop": ["version=v1", "version=v2"]}), "{listed:?}");
    assert_eq!(registry.get("/v1/catalog/services?ns=other").await.json(), json!({}));
    for (path, want) in [
        ("/v1/health/service/orders.shop", &["orders-1", "orders-2"][..]),
        ("/v1/health/service/orders?ns=shop&stale", &["orders-1", "orders-2"]),
        ("/v1/health/service/orders.shop?passing=1", &["orders-1"]),
        ("/v1/health/service/orders.shop?tag=version%3Dv2", &["orders-2"]),
        ("/v1/health/service/orders.shop?tag=version%3Dv2&passing", &[]),
        ("/v1/health/service/unknown", &[]),
    ] {
        assert_eq!(ids(&registry.get(path).await), want, "{path}");
    }
    for (path, want) in [
        ("/v1/health/service/orders.shop?filter=x", "filter"),
        ("/v1/health/service/orders.shop?index=soon", "X-Consul-Index"),
        ("/v1/catalog/services?dc=elsewhere", "datacentre"),
    ] {
        let refused = registry.get(path).await;
        assert!(refused.status == 400 && refused.body.contains(want), "{path}: {refused:?}");
    }

    // Nothing new: the answer comes when the time is over, with the same index.
    let now = index(&registry.get("/v1/health/service/orders.shop").await);
    let begin = SystemTime::now();
    let same = registry.get(&format!("/v1/health/service/orders.shop?index={now}&wait=1s")).await;
    assert!(begin.elapsed().expect("time goes on") >= Duration::from_secs(1), "{same:?}");
    assert_eq!(index(&same), now);
    // Something new: at once.
    let path = format!("/v1/health/service/orders.shop?index={now}&wait=5m");
    let (woken, ()) = tokio::join!(registry.get(&path), register(&registry, "orders-3", "v3"));
    assert!(index(&woken) > now, "{woken:?}");
    assert_eq!(ids(&woken), ["orders-1", "orders-2", "orders-3"]);
    // An index of another registry, or of the future: begin again.
    let reset = registry.get(&format!("/v1/health/service/orders.shop?index={}&wait=5m", now + 1000)).await;
    assert!(index(&reset) < now + 1000, "{reset:?}");
}

#[tokio::test]
async fn a_client_library_of_consul_follows_instances() {
    let Some(python) = peer("python-consul") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    register(&registry, "orders-1", "v1").await;
    let (host, port) = (registry.api.ip().to_string(), registry.api.port().to_string());
    let follower = Process::program("consul client", &python, [&script("consul_client.py"), &host, &port]);
    let sees = async |ids: &[&str]| {
        let seen = ids.iter().map(|id| format!("('{id}', '127.0.0.1', 80, 'passing')"));
        let want = format!("[{}]", seen.collect::<Vec<_>>().join(", "));
        follower.line(&want, |line| (line.starts_with("sees") && line.ends_with(&want)).then_some(())).await;
    };
    follower.line("datacentre", |line| (line == "datacentre pillion").then_some(())).await;
    let services = "services {'orders.shop': ['version=v1']}";
    follower.line(services, |line| (line == services).then_some(())).await;
    sees(&["orders-1"]).await;
    register(&registry, "orders-2", "v2").await;
    sees(&["orders-1", "orders-2"]).await;
    let gone = ::http::Request::delete(format!("{ORDERS}/orders-1")).header("host", registry.api.to_string());
    let gone = http::send(registry.api, gone.body(bytes::Bytes::new()).expect("a request")).await;
    assert!(gone.as_ref().is_ok_and(|gone| gone.status < 300), "{gone:?}");
    sees(&["orders-2"]).await;
    // It sleeps in between: three states, and not many more answers.
    let answers = follower.output().matches("sees").count();
    assert!(answers <= 6, "{}", follower.output());
}

/// VictoriaMetrics' own `consul_sd_configs`, with the labels that Prometheus' gives.
#[tokio::test]
async fn consul_sd_configs_finds_instances_and_scrapes_them() {
    let Some(victoria) = peer("victoria-metrics") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    register(&registry, "orders-1", "v1").await;
    let config = data.path().join("scrape.yaml");
    let text = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{
            "job_name": "mesh",
            "consul_sd_configs": [{"server": registry.api.to_string(), "services": ["orders.shop"]}],
            "relabel_configs": [
                {"source_labels": ["__meta_consul_health"], "regex": "passing", "action": "keep"},
                {"source_labels": ["__meta_consul_service_id"], "target_label": "id"},
                {"source_labels": ["__meta_consul_service_metadata_version"], "target_label": "version"},
                {
                    "source_labels": ["__meta_consul_service_address", "__meta_consul_service_metadata_pillion_metrics_port"],
                    "separator": ":",
                    "target_label": "__address__",
                },
            ],
        }],
    });
    std::fs::write(&config, text.to_string()).expect("written");
    let listen = format!("127.0.0.1:{}", pillion_tests::support::ports::free_port());
    let arguments = [
        format!("-httpListenAddr={listen}"),
        format!("-storageDataPath={}", data.path().join("victoria").display()),
        format!("-promscrape.config={}", config.display()),
        "-promscrape.consulSDCheckInterval=1s".to_owned(),
        "-loggerFormat=default".to_owned(),
    ];
    let _running = Process::program("victoria-metrics", &victoria, arguments.iter().map(String::as_str));
    let listen = listen.parse().expect("an address");
    let scrapes = async |want: &[&str]| {
        eventually(&format!("it scrapes {want:?}"), DEADLINE, || async {
            let answer = http::get(listen, "localhost", "/api/v1/targets?state=active").await?;
            let page = answer.json();
            let targets = page["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
            let up = targets.iter().filter(|target| target["health"] == "up");
            let label =
                |target: &Value, name: &str| target["labels"][name].as_str().unwrap_or("none").to_owned();
            let mut seen: Vec<String> =
                up.map(|target| format!("{} {}", label(target, "id"), label(target, "version"))).collect();
            seen.sort();
            if seen == want { Ok(()) } else { Err(format!("{seen:?}: {page}")) }
        })
        .await;
    };
    scrapes(&["orders-1 v1"]).await;
    register(&registry, "orders-2", "v2").await;
    scrapes(&["orders-1 v1", "orders-2 v2"]).await;
    let answer = registry.put(&format!("{ORDERS}/orders-1/maintenance"), &json!({})).await;
    assert!(answer.status < 300, "{answer:?}");
    scrapes(&["orders-2 v2"]).await;
}
