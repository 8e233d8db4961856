//! Who may do what with the HTTP API, and what is written down of it.

use bytes::Bytes;
use http::Method;
use pillion_tests::support::http::{Answer, send};
use pillion_tests::support::process::Finished;
use pillion_tests::support::{DEADLINE, Plan, Process, Registry, peer};
use serde_json::{Value, json};

/// Asks the registry with a token.
async fn ask(registry: &Registry, token: &str, method: Method, path: &str, body: &Value) -> Answer {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", registry.api.to_string())
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(if body.is_null() { Bytes::new() } else { body.to_string().into() })
        .expect("a request");
    send(registry.api, request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

async fn operator(registry: &Registry, role: &str) -> String {
    let made = registry.cli(&["token", "create", "--role", role, "--name", role, "--ttl", "24h"]).await;
    assert_eq!(made.code, 0, "{made:?}");
    made.stdout.trim().to_owned()
}

fn said(finished: &Finished) -> String {
    format!("{}{}", finished.stdout, finished.stderr)
}

const INSTANCE: &str = "/v1/namespaces/default/services/hello/instances/hello-1";

#[tokio::test]
async fn a_role_may_do_what_it_says_and_everything_is_written_down() {
    let (data, state) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = data.path().join("audit.jsonl");
    let registry = Registry::start_with(data.path(), &["--audit-log", &file.display().to_string()]).await;
    let bootstrap = std::fs::read_to_string(data.path().join("operator.token")).expect("a token");
    let bootstrap = bootstrap.trim();
    let (read, write) = (operator(&registry, "read").await, operator(&registry, "write").await);
    let admin = operator(&registry, "admin").await;
    let instance = json!({"address": "10.0.0.5", "port": 8080});
    let nothing = Value::Null;
    for (method, path, body, wants) in [
        (Method::GET, "/v1/services", &nothing, [200, 200, 200]),
        (Method::GET, "/v1/sd/prometheus", &nothing, [200, 200, 200]),
        (Method::GET, "/v1/ca/status", &nothing, [200, 200, 200]),
        (Method::PUT, INSTANCE, &instance, [403, 201, 200]),
        (Method::HEAD, "/v1/tokens", &nothing, [403, 403, 200]),
        (Method::GET, "/v1/snapshot", &nothing, [403, 403, 200]),
        (Method::GET, "/v1/audit", &nothing, [403, 403, 200]),
        (Method::POST, "/v1/tokens", &nothing, [403, 403, 201]),
        (Method::POST, "/v1/ca/revocations", &json!({"what": "default/web/web-1"}), [403, 403, 200]),
        (Method::POST, "/v1/ca/rotate", &nothing, [403, 403, 200]),
        (Method::DELETE, INSTANCE, &nothing, [403, 204, 204]),
    ] {
        for (token, want) in [&read, &write, &admin].into_iter().zip(wants) {
            let answer = ask(&registry, token, method.clone(), path, body).await;
            assert_eq!(answer.status, want, "{method} {path}: {answer:?}");
        }
    }
    let refused = ask(&registry, &read, Method::DELETE, INSTANCE, &nothing).await;
    let want = "the token `read` has the role read; this needs write";
    assert!(refused.body.contains(want), "{refused:?}");
    // Again with another secret: the first one is good no more. Then with none.
    let again = operator(&registry, "read").await;
    let services = async |token: &str| ask(&registry, token, Method::GET, "/v1/services", &Value::Null).await;
    assert_eq!((services(&read).await.status, services(&again).await.status), (401, 200));
    let listed = said(&registry.cli(&["token", "list"]).await);
    assert!(listed.contains("the API: read"), "{listed}");
    assert_eq!(registry.cli(&["token", "delete", "read"]).await.code, 0);
    assert_eq!(services(&again).await.status, 401);

    // A whole token where its id belongs, a name that is taken, and an identity of somebody else's mesh.
    let mistaken = registry.cli(&["token", "create"]).await.stdout.trim().to_owned();
    assert_eq!(registry.cli(&["token", "delete", &mistaken]).await.code, 1);
    let posing = serde_json::json!({"role": "admin", "name": "operator", "ttl": "1h"});
    assert_eq!(ask(&registry, &admin, Method::POST, "/v1/tokens", &posing).await.status, 422);
    assert_eq!(registry.cli(&["ca", "revoke", "spiffe://other.domain/ns/shop/svc/web"]).await.code, 1);

    // A sidecar joins, and a second one tries with the same token.
    let join = registry.cli(&["token", "create"]).await.stdout.trim().to_owned();
    let plan = Plan::caller(registry.mesh, "web.default").with(&["--join-token", &join]);
    let web = plan.clone().state(state.path()).start().await;
    let twice = pillion_tests::support::process::run(plan.instance("web-2").arguments()).await;
    assert_eq!(twice.code, 1, "{twice:?}");

    let written = std::fs::read_to_string(&file).expect("a file");
    let records: Vec<Value> =
        written.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let find = |who: &str, what: &str, refused: bool| {
        let found = records.iter().any(|record| {
            record["who"].as_str().is_some_and(|it| it.contains(who))
                && record["what"].as_str().is_some_and(|it| it.contains(what))
                && record["refused"] == refused
                && record["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:"))
        });
        assert!(found, "{who} {what} {refused}: {written}");
    };
    find("write", &format!("PUT {INSTANCE}"), false);
    find("read", &format!("PUT {INSTANCE}"), true);
    find("write", "POST /v1/ca/rotate", true);
    find("admin", "POST /v1/ca/rotate", false);
    find("operator", "POST /v1/tokens", false);
    find("", "GET /v1/services", true);
    find("token ", "issue default/web/", false);
    find("", "issue default/web/web-2", true);
    let last = ask(&registry, &admin, Method::GET, "/v1/audit?last=1", &Value::Null).await;
    assert_eq!(last.json()["records"].as_array().map(Vec::len), Some(1), "{last:?}");

    // No secret is shown anywhere.
    let key = std::fs::read_to_string(state.path().join("identity.json")).expect("an identity");
    let key: Value = serde_json::from_str(&key).expect("JSON");
    let key = key["key"].as_str().and_then(|pem| pem.lines().nth(1)).expect("a key").to_owned();
    let secret = |token: &str| token.split('.').nth(1).expect("a secret").to_owned();
    let (join_secret, mistaken_secret) = (secret(&join), secret(&mistaken));
    let dump = pillion_tests::support::http::get(web.admin, "localhost", "/config_dump").await;
    let places = [
        ("the registry's log", registry.process.output()),
        ("the sidecar's log", web.process.output()),
        ("the audit log", written),
        ("the list of tokens", said(&registry.cli(&["token", "list", "-o", "json"]).await)),
        ("the registry's metrics", registry.get("/metrics").await.body),
        ("the sidecar's configuration", dump.expect("an answer").body),
        ("the store's status", ask(&registry, &admin, Method::GET, "/v1/store", &Value::Null).await.body),
    ];
    for (place, text) in &places {
        for secret in [bootstrap, &read, &write, &admin, &again, &join_secret, &mistaken_secret, &key] {
            assert!(!text.contains(secret), "a secret is in {place}");
        }
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_token_it_was_opened_with() {
    let Some(curl) = peer("curl") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start_with(data.path(), &[]).await;
    let token = operator(&registry, "read").await;
    let (header, url) =
        (format!("authorization: Bearer {token}"), format!("http://{}/v1/watch", registry.api));
    let mut stream = Process::program("curl", &curl, ["-sN", "-H", &header, &url]);
    stream.line("the stream", |line| line.starts_with("retry").then_some(())).await;
    assert_eq!(registry.cli(&["token", "delete", "read"]).await.code, 0);
    stream.exit(DEADLINE).await;
}
