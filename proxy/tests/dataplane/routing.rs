//! Routes, splits, redirects, direct responses, local replies.

use http::header::{CONTENT_LENGTH, LOCATION};
use http::{Request, Response};
use http_body_util::Full;
use pillion_model::route::{
    ClusterChoice, Forward, PathMatch, PathRewrite, Redirect, RouteAction, RouteMatch, WeightedCluster,
};

use crate::support::*;

fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path: PathMatch::Prefix(path.to_owned()), ..RouteMatch::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_where_their_path_says() {
    let (a, b) = (Origin::named("a").await, Origin::named("b").await);
    let configuration = routes(vec![
        route("a", prefix("/a"), forward("a")),
        route("b", prefix("/b"), forward("b")),
        route("gone", prefix("/gone"), forward("nowhere")),
        route("empty", prefix("/empty"), forward("empty")),
        route("here", prefix("/here"), RouteAction::Respond { status: 202, body: b"here".to_vec() }),
    ]);
    let proxy = Proxy::http(
        configuration,
        vec![cluster("a", &[a.address]), cluster("b", &[b.address]), cluster("empty", &[])],
    );
    for (path, status, body) in [
        ("/a", 200, "a"),
        ("/b/x?y=1", 200, "b"),
        ("/gone", 503, ""),
        ("/empty", 503, "no healthy upstream"),
        ("/here", 202, "here"),
        ("/else", 404, ""),
    ] {
        assert_eq!(proxy.get(path).await, (status, body.to_owned()), "{path}");
    }
    let metrics = proxy.runtime.metrics();
    assert!(metrics.contains("pillion_requests_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_http_versions_reach_an_http1_origin() {
    let origin = Origin::start(|request: Request<hyper::body::Incoming>| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let id =
            request.headers().contains_key("x-request-id") && request.headers().contains_key("traceparent");
        Response::new(text(format!("{host} {:?} {} {id}", request.version(), request.uri())))
    })
    .await;
    let proxy = Proxy::http(
        routes(vec![route("all", prefix("/"), forward("o"))]),
        vec![cluster("o", &[origin.address])],
    );
    assert_eq!(proxy.get("/x?y").await, (200, "test HTTP/1.1 /x?y true".to_owned()));
    let mut client = proxy.client2().await;
    let request = Request::get("http://two/z").body(Full::default()).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["server"], "envoy");
    assert!(response.headers().contains_key("x-envoy-upstream-service-time"));
    assert_eq!(body_text(response).await, "two HTTP/1.1 /z true");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_split_and_rewrites_rewrite() {
    let origin = |name: &'static str| {
        Origin::start(move |request| async move { Response::new(text(format!("{name}{}", request.uri()))) })
    };
    let (a, b) = (origin("a").await, origin("b").await);
    let weighted = |cluster: &str, weight| WeightedCluster {
        metadata_match: Default::default(),
        cluster: cluster.to_owned(),
        weight,
        headers: Default::default(),
        filters: Default::default(),
    };
    let mut split = Forward::to("");
    split.to = ClusterChoice::Weighted(vec![weighted("a", 1), weighted("b", 1), weighted("c", 0)]);
    split.rewrite = Some(PathRewrite::Prefix("/new".to_owned()));
    let action = RouteAction::Forward(Box::new(split));
    let proxy = Proxy::http(
        routes(vec![route("split", prefix("/old"), action)]),
        vec![cluster("a", &[a.address]), cluster("b", &[b.address])],
    );
    for _ in 0..40 {
        let (status, body) = proxy.get("/old/x?q").await;
        assert_eq!((status, &body[1..]), (200, "/new/x?q"));
    }
    assert!(a.seen() > 5 && b.seen() > 5, "{} {}", a.seen(), b.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_our_own_have_envoys_form() {
    let redirect = Redirect { scheme: Some("https".to_owned()), status: 308, ..Redirect::default() };
    let configuration = routes(vec![
        route("redirect", prefix("/r"), RouteAction::Redirect(redirect)),
        route("dead", prefix("/"), forward("dead")),
    ]);
    let dead = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let proxy = Proxy::http(configuration, vec![cluster("dead", &[dead])]);
    let response = proxy.send(get("/r?x")).await;
    assert_eq!(response.status(), 308);
    assert_eq!(response.headers()[LOCATION], "https://test/r?x");
    assert_eq!(
        proxy.get("/").await,
        (
            503,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
                .to_owned()
        )
    );
    let request = Request::post("/svc/m")
        .header("host", "t")
        .header("content-type", "application/grpc")
        .body(Full::default());
    let response = proxy.send(request.unwrap()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let head = Request::head("/").header("host", "t").body(Full::default()).unwrap();
    let response = proxy.send(head).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key(CONTENT_LENGTH));
}
