//! The HTTP API from outside: a registry on a free port, asked over TCP.

use std::time::Duration;

use crate::support::{Client, Events, start};
use serde_json::json;

const A: &str = "/v1/namespaces/shop/services/orders/instances/a";
const INSTANCES: &str = "/v1/namespaces/shop/services/orders/instances";

async fn registered(client: &Client, id: &str) {
    let answer = client.put(&format!("{INSTANCES}/{id}"), json!({"address": "10.0.0.5", "port": 8080})).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
}

fn ids(list: &serde_json::Value) -> Vec<&str> {
    list["instances"].as_array().expect("a list").iter().filter_map(|i| i["id"].as_str()).collect()
}

#[tokio::test]
async fn an_instance_registers_beats_and_leaves() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let made = client.put(A, json!({"address": "10.0.0.5", "port": 8080})).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    assert_eq!((&made["generation"], &made["beatInterval"]), (&json!(1), &json!("10s")));
    assert_eq!((&made["health"], &made["ports"]["http"]["port"]), (&json!("serving"), &json!(8080)));
    assert_eq!(client.put(A, json!({"address": "10.0.0.5", "port": 8080})).await.status, 200);

    let beat = client.put(&format!("{A}/heartbeat"), "").await;
    assert_eq!((beat.status, beat.json()["beatInterval"].clone()), (200, json!("10s")));
    let beat = client.put(&format!("{A}/heartbeat"), json!({"health": "draining"})).await;
    assert_eq!(beat.json()["health"], "draining");
    let many = json!({"heartbeats": [
        {"namespace": "shop", "service": "orders", "id": "a", "health": "ready"},
        {"namespace": "shop", "service": "orders", "id": "nobody"},
        {"namespace": "shop", "service": "orders", "id": "a", "generation": 7},
    ]});
    let many = client.post("/v1/heartbeats", "application/json", &many.to_string()).await.json();
    let statuses: Vec<_> = many["results"].as_array().expect("list").iter().map(|r| &r["status"]).collect();
    assert_eq!(statuses, ["ok", "unknown", "older"]);
    assert_eq!(client.get(A).await.json()["health"], "serving");

    assert_eq!(client.delete(A).await.status, 204);
    assert_eq!(client.delete(A).await.status, 204, "leaving twice is no error");
    assert_eq!(client.get(A).await.status, 404);
    assert_eq!(client.put(&format!("{A}/heartbeat"), "").await.status, 404);
    running.stop().await;
}

#[tokio::test]
async fn lists_filter_by_health_label_and_zone() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    for (id, version, zone, health) in
        [("a", "1", "z1", "ready"), ("b", "2", "z1", "ready"), ("c", "2", "z2", "notReady")]
    {
        let body = json!({"address": "10.0.0.5", "port": 80, "labels": {"version": version}, "zone": zone, "health": health});
        client.put(&format!("{INSTANCES}/{id}"), body).await;
    }
    for (query, want) in [
        ("", vec!["a", "b", "c"]),
        ("?healthy=true", vec!["a", "b"]),
        ("?healthy=false", vec!["c"]),
        ("?label=version=2", vec!["b", "c"]),
        ("?label=version=2&zone=z1", vec!["b"]),
        ("?label=other", vec![]),
    ] {
        let list = client.get(&format!("{INSTANCES}{query}")).await.json();
        assert_eq!(ids(&list), want, "{query}");
    }
    assert_eq!(client.get("/v1/namespaces/shop/services/nobody/instances").await.status, 404);
    let service = client.get("/v1/namespaces/shop/services/orders").await.json();
    assert_eq!(service["instances"], json!({"total": 3, "serving": 2, "down": 1}));
    assert_eq!(service["origin"], "registered");
    running.stop().await;
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong_and_change_nothing() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let json_kind = [("content-type", "application/json")];
    for (method, path, body, status, field, word) in [
        ("PUT", A, r#"{"address": "nowhere", "port": 1}"#, 422, "address", "nowhere"),
        ("PUT", A, r#"{"address": "10.0.0.1", "port": 1, "ttl": "1s"}"#, 422, "ttl", "2s to 24h"),
        ("PUT", A, r#"{"address": "10.0.0.1", "#, 400, "", "not valid JSON"),
        ("PUT", A, r#"{"address": "10.0.0.1", "port": 1, "port": 2}"#, 400, "", "`port` stands there twice"),
        ("PUT", "/v1/namespaces/svc/services/a/instances/a", "{}", 422, "namespace", "reserved"),
        ("PUT", "/v1/namespaces/shop/services/A/instances/a", "{}", 422, "service", "position 0"),
        ("PUT", "/v1/namespaces/shop/services/a/instances/A_", "{}", 422, "id", "position 0"),
        (
            "GET",
            "/v1/namespaces/shop/services/orders/instances?color=red",
            "",
            400,
            "color",
            "parameters are",
        ),
        ("GET", "/v1/namespaces/shop/services/orders/instances?healthy=maybe", "", 400, "healthy", "maybe"),
        ("GET", "/v1/services?since=x", "", 400, "since", "token"),
        ("GET", "/v1/services?since=ffff.1&wait=10s", "", 410, "", "another history"),
        ("GET", "/v1/watch?since=ffff.1", "", 410, "", "another history"),
        ("GET", "/v1/nothing", "", 404, "", "openapi.json"),
        ("PATCH", A, "", 405, "", "PATCH"),
        ("GET", "/v1/resources/Gadget", "", 404, "kind", "Gadget"),
    ] {
        let answer = client.send(method, path, &json_kind, body).await;
        let at = format!("{method} {path} {body}: {}", answer.text());
        assert_eq!(answer.status, status, "{at}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{at}");
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{at}");
        assert!(answer.text().contains(word), "{at}");
        if !field.is_empty() {
            assert_eq!(problem["errors"][0]["field"], field, "{at}");
        }
    }
    assert_eq!(client.get("/v1/services").await.json()["services"], json!([]));
    running.stop().await;
}

#[tokio::test]
async fn without_the_operators_token_nothing_is_told_or_changed() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    for token in [None, Some("wrong".to_owned())] {
        let stranger = Client { token, ..client.clone() };
        for answer in [
            stranger.get("/v1/services").await,
            stranger.put(A, json!({"address": "10.0.0.5", "port": 80})).await,
            stranger.get("/v1/watch").await,
        ] {
            assert_eq!(answer.status, 401);
            assert!(answer.header("www-authenticate").starts_with("Bearer"));
            assert!(answer.text().contains("operator.token"), "{}", answer.text());
        }
        for path in ["/healthz", "/readyz", "/metrics", "/v1/openapi.json"] {
            assert_eq!(stranger.get(path).await.status, 200, "{path}");
        }
    }
    assert_eq!(client.get("/v1/services").await.json()["services"], json!([]));
    running.stop().await;
}

#[tokio::test]
async fn a_long_poll_returns_on_the_next_change_of_what_was_asked() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    registered(&client, "a").await;
    let token = client.get(INSTANCES).await.json()["token"].as_str().expect("token").to_owned();
    // Nothing new: nothing is told.
    let waited = client.get(&format!("{INSTANCES}?since={token}&wait=50ms")).await;
    assert_eq!((waited.status, waited.header("pillion-token")), (204, token.as_str()));
    // Something of another service does not count.
    let poll = {
        let (client, path) = (client.clone(), format!("{INSTANCES}?since={token}&wait=10s"));
        tokio::spawn(async move { client.get(&path).await })
    };
    client
        .put("/v1/namespaces/shop/services/web/instances/a", json!({"address": "10.0.0.9", "port": 80}))
        .await;
    registered(&client, "b").await;
    let changed = poll.await.expect("answers");
    assert_eq!(ids(&changed.json()), ["a", "b"]);
    let again = client.get(&format!("{INSTANCES}?since={token}&wait=10s")).await;
    assert_eq!(ids(&again.json()), ["a", "b"], "what was missed comes at once");
    running.stop().await;
}

#[tokio::test]
async fn a_stream_tells_changes_and_resumes_by_its_last_event() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    registered(&client, "a").await;
    let mut events = Events::open(&client, "/v1/watch?service=orders.shop", &[]).await;
    let (kind, _, data) = events.next().await;
    assert_eq!((kind.as_str(), data["instances"][0]["id"].as_str()), ("service", Some("a")));
    assert_eq!(events.next().await.0, "progress");
    registered(&client, "b").await;
    let (kind, _, data) = events.next().await;
    assert_eq!((kind.as_str(), data["instances"][0]["id"].as_str()), ("change", Some("b")));
    let (_, id, _) = events.next().await;
    drop(events);

    client.delete(&format!("{INSTANCES}/a")).await;
    let mut resumed = Events::open(&client, "/v1/watch?service=orders.shop", &[("last-event-id", &id)]).await;
    let (kind, _, data) = resumed.next().await;
    assert_eq!((kind.as_str(), ids(&data)), ("service", vec!["b"]));
    let foreign = [("last-event-id", "0123.4")];
    let mut foreign = Events::open(&client, "/v1/watch?service=orders.shop", &foreign).await;
    assert_eq!(foreign.next().await.0, "resync");
    assert_eq!(foreign.next().await.0, "service");
    running.stop().await;
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_restart_and_nobody_expires() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let body = json!({"address": "10.0.0.5", "port": 80, "ttl": "2s"});
    client.put(A, body).await;
    registered(&client, "gone").await;
    client.delete(&format!("{INSTANCES}/gone")).await;
    client.post("/v1/apply", "application/yaml", ORDERS).await;
    let token = client.get("/v1/services").await.json()["token"].clone();
    running.stop().await;
    let (running, client) = start(directory.path()).await;
    let list = client.get(INSTANCES).await.json();
    assert_eq!((ids(&list), &list["token"]), (vec!["a"], &token), "the same history goes on");
    let again = client
        .put(&format!("{INSTANCES}/gone"), json!({"address": "10.0.0.5", "port": 80, "generation": 1}))
        .await;
    assert_eq!(again.status, 409, "what left does not return: {}", again.text());
    // Its lease of 2 s is over, but it had no chance to find the new process.
    tokio::time::timeout(Duration::from_secs(4), async {
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        loop {
            ticks.tick().await;
            assert_eq!(ids(&client.get(INSTANCES).await.json()), ["a"]);
        }
    })
    .await
    .expect_err("watched for the whole time");
    running.stop().await;
}

#[tokio::test]
async fn a_silent_instance_expires_and_one_that_beats_does_not() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    for id in ["silent", "beating"] {
        client
            .put(&format!("{INSTANCES}/{id}"), json!({"address": "10.0.0.5", "port": 80, "ttl": "2s"}))
            .await;
    }
    let beats = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(300));
            loop {
                ticks.tick().await;
                client.put(&format!("{INSTANCES}/beating/heartbeat"), "").await;
            }
        })
    };
    let mut events = Events::open(&client, "/v1/watch?service=orders.shop", &[]).await;
    let started = tokio::time::Instant::now();
    loop {
        let (kind, _, data) = events.next().await;
        if kind == "change" && data["removed"] == json!(["silent"]) {
            break;
        }
        assert!(data["removed"].as_array().is_none_or(Vec::is_empty), "{data}");
    }
    let after = started.elapsed();
    assert!(after < Duration::from_secs(4), "{after:?} for a lease of 2 s");
    assert_eq!(ids(&client.get(INSTANCES).await.json()), ["beating"]);
    beats.abort();
    running.stop().await;
}

const ORDERS: &str = "
kind: Service
name: orders
namespace: shop
ports: [{name: http, port: 80, targetPort: 8080, protocol: http}]
subsets: {v1: {version: '1'}}
";

#[tokio::test]
async fn resources_are_applied_all_or_nothing_in_three_formats() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let wrong = format!(
        "{ORDERS}---\nkind: Route\nname: r\nnamespace: shop\nto: orders\nrules: [{{split: [{{subset: v9, weight: 1}}]}}]\n"
    );
    let refused = client.post("/v1/apply", "application/yaml", &wrong).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    let error = refused.json()["errors"][0].clone();
    assert_eq!(
        (&error["field"], &error["resource"]),
        (&json!("rules[0].split[0].subset"), &json!("Route shop/r"))
    );
    assert_eq!(error["line"], 12, "{error}");
    let three = "kind: Service\nname: Orders\nports: [{name: http, port: 70000}]\ncolour: red\n";
    let refused = client.post("/v1/apply", "application/yaml", three).await;
    assert_eq!(refused.json()["errors"].as_array().map(Vec::len), Some(3), "{}", refused.text());
    assert_eq!(client.get("/v1/resources").await.json()["resources"], json!([]));

    let dry = client.post("/v1/apply?dryRun=true", "application/yaml", ORDERS).await.json();
    assert_eq!((&dry["dryRun"], &dry["results"][0]["result"]), (&json!(true), &json!("created")));
    assert_eq!(client.get("/v1/resources").await.json()["resources"], json!([]));

    let toml =
        "kind = \"Service\"\nname = \"web\"\nnamespace = \"shop\"\nports = [{name = \"http\", port = 80}]\n";
    let json = json!({"kind": "Service", "name": "pay", "namespace": "shop", "ports": [{"name": "http", "port": 80}]});
    for (kind, body) in
        [("application/yaml", ORDERS), ("application/toml", toml), ("application/json", &json.to_string())]
    {
        let applied = client.post("/v1/apply", kind, body).await;
        assert_eq!(applied.status, 200, "{kind}: {}", applied.text());
        let again = client.post("/v1/apply", kind, body).await.json();
        assert_eq!(again["results"][0]["result"], "unchanged", "{kind}");
    }
    let all = client.get("/v1/resources/services?namespace=shop").await.json();
    let names: Vec<_> = all["resources"].as_array().expect("list").iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["orders", "pay", "web"]);
    assert_eq!(client.post("/v1/apply", "image/png", "x").await.status, 415);
    running.stop().await;
}

#[tokio::test]
async fn a_resource_is_replaced_only_as_it_was_read() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let path = "/v1/resources/Service/shop/orders";
    let body = |port: u16| json!({"ports": [{"name": "http", "port": port}]}).to_string();
    let kind = ("content-type", "application/json");
    let made = client.send("PUT", path, &[kind, ("if-none-match", "*")], &body(80)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let etag = client.get(path).await.header("etag").to_owned();
    assert_eq!(made.header("etag"), etag);
    assert_eq!(client.send("PUT", path, &[kind, ("if-none-match", "*")], &body(81)).await.status, 412);
    let next = client.send("PUT", path, &[kind, ("if-match", &etag)], &body(81)).await;
    assert_eq!(next.status, 200, "{}", next.text());
    let late = client.send("PUT", path, &[kind, ("if-match", &etag)], &body(82)).await;
    assert_eq!(late.status, 412, "{}", late.text());
    assert_eq!(client.get(path).await.json()["ports"][0]["port"], 81);
    let other = json!({"kind": "Service", "namespace": "shop", "name": "web", "ports": [{"name": "http", "port": 1}]});
    assert_eq!(client.put(path, other).await.status, 422);
    assert_eq!(client.send("DELETE", path, &[("if-match", &etag)], "").await.status, 412);
    assert_eq!(client.delete(path).await.status, 204);
    assert_eq!(client.delete(path).await.status, 404);
    running.stop().await;
}

#[tokio::test]
async fn an_explicit_service_wins_over_what_instances_say() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    client.post("/v1/apply", "application/yaml", ORDERS).await;
    let body = json!({"address": "10.0.0.5", "ports": {"http": {"port": 8080, "protocol": "tcp"}}});
    let refused = client.put(A, body).await;
    assert_eq!(refused.status, 409);
    assert_eq!(refused.json()["errors"][0]["field"], "ports.http.protocol");
    assert!(refused.text().contains("in its Service resource"), "{}", refused.text());
    running.stop().await;
}

#[tokio::test]
async fn prometheus_finds_targets_and_metrics() {
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let body = json!({"address": "fd00::5", "port": 80, "metricsPort": 15020, "labels": {"app.kubernetes.io/name": "x"}});
    client.put(A, body).await;
    let targets = client.get("/v1/sd/prometheus").await.json();
    assert_eq!(targets[0]["targets"], json!(["[fd00::5]:15020"]));
    assert_eq!(targets[0]["labels"]["__meta_pillion_service"], "orders");
    assert_eq!(targets[0]["labels"]["__meta_pillion_label_app_kubernetes_io_name"], "x");
    let metrics = client.get("/metrics").await.text();
    for line in [
        "pillion_registry_instances{health=\"serving\"} 1",
        "pillion_registry_services 1",
        "pillion_registry_api_requests_total{code=\"201\",method=\"PUT\",path=\"/v1/namespaces/{namespace}/services/{service}/instances/{id}\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_in_the_way_of_a_start_is_told() {
    use pillion_registry::app::{self, Options};
    let directory = tempfile::tempdir().expect("tempdir");
    let (running, client) = start(directory.path()).await;
    let options = |directory: &std::path::Path, port| {
        let mut options = Options::new(directory);
        options.api.set_port(port);
        options.mesh.set_port(0);
        options.dns.set_port(0);
        options
    };
    let other = tempfile::tempdir().expect("tempdir");
    let taken =
        app::start(options(other.path(), client.address.port())).await.err().expect("taken").to_string();
    assert!(taken.contains(&client.address.to_string()) && taken.contains("--api"), "{taken}");
    let locked = app::start(options(directory.path(), 0)).await.err().expect("locked").to_string();
    assert!(locked.contains("in use by another registry"), "{locked}");
    running.stop().await;
    let store = directory.path().join(pillion_registry::store::redb::FILE_NAME);
    std::fs::write(&store, b"not a store").expect("writes");
    let damaged = app::start(options(directory.path(), 0)).await.err().expect("damaged").to_string();
    assert!(
        damaged.contains(store.to_str().expect("UTF-8")) && damaged.contains("move it aside"),
        "{damaged}"
    );
    let mut open = options(other.path(), 0);
    open.open = true;
    open.api.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
    let refused = app::start(open).await.err().expect("refused").to_string();
    assert!(refused.contains("loopback"), "{refused}");
}
