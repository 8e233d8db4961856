//! What resources say about traffic, as the application, the caller and the metrics see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use pillion_tests::support::app::{App, Seen, echo, status};
use pillion_tests::support::http::Answer;
use pillion_tests::support::{DEADLINE, Plan, Process, Registry, Sidecar, eventually, peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const SHOP: &str = "kind: Service\nname: shop\nports: [{name: http, port: 80, protocol: http}]\n";
const NAME: &str = "shop.default.mesh.internal";

/// A registry with these resources beside the service `shop`, its sidecar, and that of `web`.
async fn mesh(data: &tempfile::TempDir, app: &App, more: &str) -> (Registry, Sidecar, Sidecar) {
    let registry = Registry::start(data.path()).await;
    let service = if more.contains("kind: Service\nname: shop\n") { "" } else { SHOP };
    registry.apply(&format!("{service}---\n{more}")).await;
    let server = Sidecar::beside(&registry, "shop.default", app.address).await;
    let log = data.path().join("access.log").display().to_string();
    let web = Plan::caller(registry.mesh, "web.default");
    let web = web.with(&["--access-log", &log, "--access-log-format", "json"]).start().await;
    // Any answer but that of a sidecar which does not know the service yet.
    eventually("the service is reached", DEADLINE, || async {
        let answer = web.get(NAME, "/reached").await?;
        if answer.status < 500 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    (registry, server, web)
}

fn paths(app: &App) -> Vec<String> {
    app.seen().iter().map(|seen| seen.uri().to_string()).filter(|uri| uri != "/reached").collect()
}

/// Sends a request line as it is: clients would tidy it up.
async fn raw(sidecar: &Sidecar, target: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(sidecar.outbound).await?;
        let request = format!("GET {target} HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(DEADLINE, talk).await.expect("an answer in time");
    answer.unwrap_or_else(|error| panic!("{target}: {error}"))
}

#[tokio::test]
async fn no_spelling_of_a_forbidden_path_gets_through() {
    const POLICY: &str = "\
kind: AuthorizationPolicy
name: no-admin
to: shop
action: deny
rules: [{paths: [/admin, /admin/*]}]
";
    let data = tempfile::tempdir().expect("a folder");
    let app = App::start("shop").await;
    let (_registry, _server, web) = mesh(&data, &app, POLICY).await;
    for target in [
        "/admin",
        "/admin?x=1",
        "/admin/users",
        "/a/../admin",
        "/a/%2e%2e/admin",
        "/a/.%2E/admin",
        "/./admin",
        "//admin",
        "/%61dmin",
        "/%61%64%6d%69%6e/users",
        "/a\\..\\admin",
        "/a/..;x=1/admin",
        "http://shop.default.mesh.internal/a/../admin",
    ] {
        let answer = raw(&web, target).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{target}: {answer}");
    }
    assert_eq!(paths(&app), Vec::<String>::new());
    // What is allowed arrives in the form that was judged.
    for (target, arrived) in [
        ("/a/../b", "/b"),
        ("//c/./d?e=%2e%2e", "/c/d?e=%2e%2e"),
        ("/a//..//admin", "/a/admin"), // `..` takes an empty segment back, slashes are merged afterwards
        ("/administer", "/administer"),
    ] {
        let answer = raw(&web, target).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        assert_eq!(paths(&app).last().map(String::as_str), Some(arrived), "{target}");
    }
}

#[tokio::test]
async fn dry_runs_and_audits_decide_nothing_and_are_counted() {
    const POLICIES: &str = "\
kind: AuthorizationPolicy
name: would-deny
to: shop
action: deny
dryRun: true
rules: [{from: [{service: web}]}]
---
kind: AuthorizationPolicy
name: writes
to: shop
action: audit
rules: [{methods: [POST]}]
";
    let data = tempfile::tempdir().expect("a folder");
    let app = App::start("shop").await;
    let (_registry, server, web) = mesh(&data, &app, POLICIES).await;
    let labels = [("direction", "inbound"), ("outcome", "denied"), ("mode", "shadow")];
    let before = server.metric("pillion_authorization_total", &labels).await;
    for _ in 0..5 {
        assert_eq!(web.get(NAME, "/").await.expect("an answer").status, 200);
    }
    let counted = server.metric("pillion_authorization_total", &labels).await;
    assert_eq!(counted - before, 5.0, "{}", server.scrape().await);
    let denied = [("outcome", "denied"), ("mode", "enforced")];
    assert_eq!(server.metric("pillion_authorization_total", &denied).await, 0.0);
}

#[tokio::test]
async fn a_tcp_service_talks_only_to_whom_it_may() {
    const RESOURCES: &str = "\
kind: Service
name: clock
ports: [{name: tcp, port: 7000, protocol: tcp}]
---
kind: AuthorizationPolicy
name: clock-callers
to: clock
action: allow
rules: [{from: [{service: front}]}]
";
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply(RESOURCES).await;
    let clock = Process::pillion("clock", ["demo-service", "clock", "--instance", "clock-1"]);
    let port = format!("{}:tcp", clock.bound("listening on").await.port());
    let _server = Plan::new(registry.mesh, "clock.default", &port).start().await;
    registry.serving("clock.default", 1).await;
    let greeting = async |sidecar: &Sidecar| {
        let vip = sidecar.vip(&dig, "clock.default.mesh.internal").await;
        let mut stream = TcpStream::connect((vip, 7000)).await.map_err(|error| error.to_string())?;
        let mut greeting = [0; 64];
        let read = tokio::time::timeout(DEADLINE, stream.read(&mut greeting)).await;
        // A refusal is an end without a byte, or a reset.
        let read = read.expect("an answer or an end in time").unwrap_or(0);
        Ok::<_, String>(String::from_utf8_lossy(&greeting[..read]).into_owned())
    };
    let (front, web) =
        tokio::join!(Sidecar::caller(&registry, "front.default"), Sidecar::caller(&registry, "web.default"));
    eventually("the front is greeted", DEADLINE, || async {
        let said = greeting(&front).await?;
        if said.starts_with("clock clock-1") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    for _ in 0..3 {
        assert_eq!(greeting(&web).await, Ok(String::new()));
    }
}

const ROUTES: &str = "\
kind: Service
name: shadow
ports: [{name: http, port: 80, protocol: http}]
---
kind: Route
name: shop
to: shop
rules:
  - match: {path: {prefix: /v1/}}
    rewrite: {prefix: /api/}
    headers:
      request: {set: {x-mesh: pillion}, add: {x-seen: here}, remove: [x-debug]}
      response: {set: {x-answered: shop}, remove: [content-type]}
  - match: {path: {exact: /old}}
    redirect: {path: /new, status: 308}
  - match: {path: {exact: /teapot}}
    respond: {status: 418, body: short and stout}
  - match: {path: {exact: /abort}}
    fault: {abort: {status: 599, percent: 100}}
  - match: {path: {exact: /delay}}
    fault: {delay: {fixed: 300ms, percent: 100}}
  - match: {path: {exact: /mirrored}}
    mirror: {service: shadow, percent: 100}
  - match: {path: {prefix: /cors}}
    cors: {allowOrigins: [\"https://shop.example.com\"], allowMethods: [GET, PUT], allowHeaders: [x-token], maxAge: 1h}
  - match: {headers: [{name: x-beta, exact: \"1\"}], query: [{name: q, present: true}], method: [POST]}
    respond: {status: 202}
  - {}
";

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<bytes::Bytes> {
    let mut request = Request::builder().method(method).uri(path).header("host", NAME);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(bytes::Bytes::new()).expect("a valid request")
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).and_then(|value| value.to_str().ok())
}

#[tokio::test]
async fn routes_do_what_they_say() {
    let data = tempfile::tempdir().expect("a folder");
    let (app, shadow) = (App::start("shop").await, App::start("shadow").await);
    let (registry, _server, web) = mesh(&data, &app, ROUTES).await;
    let _shadow = Sidecar::beside(&registry, "shadow.default", shadow.address).await;
    let send = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let answer = web.send(request(method, path, headers)).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    };

    let rewritten = send("GET", "/v1/cart?a=b", &[("x-debug", "1"), ("x-seen", "there")]).await;
    let page = rewritten.json();
    assert_eq!((rewritten.status, &page["uri"]), (200, &"/api/cart?a=b".into()), "{rewritten:?}");
    assert_eq!(page["headers"]["x-mesh"], "pillion", "{page}");
    assert_eq!(page["headers"]["x-seen"], "there, here", "{page}");
    assert!(page["headers"]["x-debug"].is_null(), "{page}");
    let changed = (header(&rewritten, "x-answered"), header(&rewritten, "content-type"));
    assert_eq!(changed, (Some("shop"), None), "{rewritten:?}");

    let before = paths(&app).len();
    let moved = send("GET", "/old?a=b", &[]).await;
    assert_eq!(moved.status, 308, "{moved:?}");
    assert_eq!(header(&moved, "location"), Some(&*format!("http://{NAME}/new?a=b")), "{moved:?}");
    let teapot = send("GET", "/teapot", &[]).await;
    assert_eq!((teapot.status, &*teapot.body), (418, "short and stout"));
    assert_eq!(send("GET", "/abort", &[]).await.status, 599);
    let matched = send("POST", "/else?q=1", &[("x-beta", "1")]).await;
    assert_eq!(matched.status, 202, "{matched:?}");
    assert_eq!(paths(&app).len(), before, "none of these reach the application: {:?}", paths(&app));
    let unmatched = send("GET", "/else?q=1", &[("x-beta", "1")]).await;
    assert_eq!(unmatched.status, 200, "{unmatched:?}");

    let begin = tokio::time::Instant::now();
    assert_eq!(send("GET", "/delay", &[]).await.status, 200);
    assert!(begin.elapsed().as_millis() >= 300, "{:?}", begin.elapsed());

    // The mirror's cluster may come a moment after its route: until then nothing is mirrored.
    eventually("the mirror sees a request", DEADLINE, || async {
        let answer = web.get(NAME, "/mirrored").await?;
        assert_eq!(answer.json()["name"], "shop", "the answer is the first one's: {answer:?}");
        if shadow.seen().is_empty() { Err("none yet") } else { Ok(()) }.map_err(str::to_owned)
    })
    .await;
    let mirrored = shadow.seen().remove(0);
    assert_eq!(mirrored.uri(), "/mirrored", "{mirrored:?}");
    let host = mirrored.headers().get("host").and_then(|host| host.to_str().ok());
    assert_eq!(host, Some(&*format!("{NAME}-shadow")), "as Envoy marks it: {mirrored:?}");
}

#[tokio::test]
async fn other_origins_are_answered_as_allowed() {
    let data = tempfile::tempdir().expect("a folder");
    let app = App::start("shop").await;
    let (_registry, _server, web) = mesh(&data, &app, ROUTES).await;
    let (asks, ours) = (("access-control-request-method", "PUT"), ("origin", "https://shop.example.com"));
    let preflight = web.send(request("OPTIONS", "/cors/a", &[ours, asks])).await.expect("an answer");
    assert_eq!(preflight.status, 200, "{preflight:?}");
    for (name, want) in [
        ("access-control-allow-origin", "https://shop.example.com"),
        ("access-control-allow-headers", "x-token"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(header(&preflight, name), Some(want), "{name}: {preflight:?}");
    }
    let methods = header(&preflight, "access-control-allow-methods").unwrap_or_default();
    assert!(methods.contains("GET") && methods.contains("PUT"), "{preflight:?}");
    assert_eq!(paths(&app), Vec::<String>::new(), "a preflight is answered by the sidecar");
    let simple = web.send(request("GET", "/cors/a", &[ours])).await.expect("an answer");
    assert_eq!(header(&simple, "access-control-allow-origin"), Some(ours.1), "{simple:?}");
    let other = web.send(request("GET", "/cors/a", &[("origin", "https://evil.example")])).await;
    let other = other.expect("an answer");
    assert_eq!(header(&other, "access-control-allow-origin"), None, "{other:?}");
}

#[tokio::test]
async fn retries_and_their_timeouts_hide_a_flaky_application() {
    const FLAKY: &str = "\
kind: Service
name: shop
ports: [{name: http, port: 80, protocol: http}]
timeout: {request: 10s, perTry: 500ms}
retry: {attempts: 2, on: [\"503\", reset, gateway-error], budgetPercent: 100}
";
    let data = tempfile::tempdir().expect("a folder");
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    // Of each three tries at /fails the third succeeds; the first at /stalls is never answered.
    let app = App::with(move |seen: Seen| {
        let tries = Arc::clone(&counted);
        async move {
            let nth = match seen.uri().path() {
                "/reached" => return echo("shop", &seen),
                _ => tries.fetch_add(1, Ordering::SeqCst),
            };
            match seen.uri().path() {
                "/fails" if nth % 3 < 2 => status(503),
                "/broken" => status(503),
                "/stalls" if nth == 0 => std::future::pending().await,
                _ => echo("shop", &seen),
            }
        }
    })
    .await;
    let (_registry, _server, web) = mesh(&data, &app, FLAKY).await;
    let get = async |path: &str| {
        tries.store(0, Ordering::SeqCst);
        let answer = web.get(NAME, path).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        (answer.status, tries.load(Ordering::SeqCst))
    };
    assert_eq!(get("/fails").await, (200, 3), "the third try succeeds");
    assert_eq!(get("/broken").await, (503, 3), "two retries, then the failure is told");
    assert_eq!(get("/stalls").await, (200, 2), "a try that takes too long is tried again");
    // A request that may have had an effect is not repeated.
    tries.store(0, Ordering::SeqCst);
    let posted = web.send(request("POST", "/broken", &[])).await.expect("an answer");
    assert_eq!((posted.status, tries.load(Ordering::SeqCst)), (503, 1), "{posted:?}");
    assert!(web.metric("pillion_retries_total", &[]).await >= 5.0, "{}", web.scrape().await);
}

#[tokio::test]
async fn a_full_breaker_refuses_at_once_and_says_so_in_the_log() {
    const NARROW: &str = "\
kind: Service
name: shop
ports: [{name: http, port: 80, protocol: http}]
retry: {attempts: 0}
circuitBreaker: {maxRequests: 1}
";
    let data = tempfile::tempdir().expect("a folder");
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let app = App::with(move |seen| {
        let gate = Arc::clone(&opened);
        async move {
            if seen.uri().path() == "/slow" {
                let _open = gate.acquire().await;
            }
            echo("shop", &seen)
        }
    })
    .await;
    let (_registry, _server, web) = mesh(&data, &app, NARROW).await;
    let (first, ()) = tokio::join!(web.get(NAME, "/slow"), async {
        eventually("the first request is in flight", DEADLINE, || async {
            if paths(&app).is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await;
        let refused = web.get(NAME, "/second").await.expect("an answer");
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(header(&refused, "x-envoy-overloaded"), Some("true"), "{refused:?}");
        gate.add_permits(1);
    });
    assert_eq!(first.expect("an answer").status, 200);
    assert_eq!(web.get(NAME, "/third").await.expect("an answer").status, 200);
    assert_eq!(paths(&app), ["/slow", "/third"]);
    let log = data.path().join("access.log");
    let line = eventually("the refusal is logged", DEADLINE, || async {
        let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let line = text.lines().find(|line| line.contains("/second")).map(str::to_owned);
        line.ok_or(text)
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["responseFlags"], &line["responseCode"]), (&"UO".into(), &503.into()), "{line}");
}
