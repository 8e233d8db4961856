//! The HTTP sample services: front, orders and payments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use hyper::body::Incoming;
use serde_json::json;

use super::server::{Response, Stop, http as serve_http, json, serve};
use super::{Common, Way};
use crate::http::{Answer, send};

/// How long the front waits for another service.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Request headers handed on with calls, so that one request is one trace.
const PASSED_ON: [&str; 3] = ["x-request-id", "traceparent", "tracestate"];

/// Arguments of the front.
#[derive(Debug, clap::Args)]
pub(crate) struct FrontArguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    way: Way,
    /// The name that orders is called by.
    #[arg(long, default_value = "orders.shop.mesh.internal")]
    orders: String,
    /// The name that payments is called by.
    #[arg(long, default_value = "payments.shop.mesh.internal")]
    payments: String,
}

/// Arguments of orders and payments.
#[derive(Debug, clap::Args)]
pub(crate) struct LeafArguments {
    #[command(flatten)]
    common: Common,
    /// The version that answers name.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Answer so many of 100 requests with 503; `PUT /fail?percent=N` changes it, and
    /// `/stats` counts them.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    fail_percent: u8,
}

/// Serves the front.
pub(super) async fn front(arguments: FrontArguments, stop: Stop) -> anyhow::Result<()> {
    let listen = arguments.common.listen;
    let front = Arc::new(arguments);
    serve(listen, stop, move |stream, closing| {
        let front = Arc::clone(&front);
        async move { serve_http(stream, closing, |request| front_page(&front, request)).await }
    })
    .await
}

async fn front_page(front: &FrontArguments, request: http::Request<Incoming>) -> Response {
    if request.uri().path() == "/healthz" {
        return json(StatusCode::OK, &json!({"status": "ok"}));
    }
    let calls = (
        call(front, &front.orders, "/orders", &request),
        call(front, &front.payments, "/payments", &request),
    );
    let (orders, payments) = futures_util::future::join(calls.0, calls.1).await;
    let all_well = [&orders, &payments].iter().all(|answer| answer["status"] == 200);
    let status = if all_well { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    let page = json!({
        "service": "front",
        "instance": front.common.instance,
        "caller": caller(&request),
        "orders": orders,
        "payments": payments,
    });
    json(status, &page)
}

/// Calls another service by name: the name is in `Host`, whatever is dialled.
async fn call(
    front: &FrontArguments,
    name: &str,
    path: &str,
    cause: &http::Request<Incoming>,
) -> serde_json::Value {
    let mut request = http::Request::get(path).header(http::header::HOST, name);
    for header in PASSED_ON {
        if let Some(value) = cause.headers().get(header) {
            request = request.header(header, value);
        }
    }
    let answer = match request.body(Bytes::new()) {
        Ok(request) => send(&front.way.to(name), None, request, CALL_TIMEOUT).await,
        Err(error) => Err(error.into()),
    };
    match answer {
        Ok(answer) => json!({"status": answer.status.as_u16(), "body": body(&answer)}),
        Err(error) => json!({"status": 0, "body": format!("{error:#}")}),
    }
}

fn body(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| answer.text().trim().into())
}

/// Serves orders or payments.
pub(super) async fn leaf(service: &'static str, arguments: LeafArguments, stop: Stop) -> anyhow::Result<()> {
    let listen = arguments.common.listen;
    let fail_percent = AtomicU8::new(arguments.fail_percent);
    let leaf = Arc::new(Leaf { service, arguments, fail_percent, failed: AtomicU64::new(0) });
    serve(listen, stop, move |stream, closing| {
        let leaf = Arc::clone(&leaf);
        async move { serve_http(stream, closing, |request| std::future::ready(leaf.answer(&request))).await }
    })
    .await
}

struct Leaf {
    service: &'static str,
    arguments: LeafArguments,
    fail_percent: AtomicU8,
    failed: AtomicU64,
}

impl Leaf {
    fn answer(&self, request: &http::Request<Incoming>) -> Response {
        match (request.method(), request.uri().path()) {
            (_, "/healthz") => json(StatusCode::OK, &json!({"status": "ok"})),
            (_, "/stats") => json(StatusCode::OK, &json!({"failed": self.failed.load(Ordering::Relaxed)})),
            (&http::Method::PUT, "/fail") => self.set_fail_percent(request.uri().query().unwrap_or_default()),
            _ if fastrand::u8(0..100) < self.fail_percent.load(Ordering::Relaxed) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                json(StatusCode::SERVICE_UNAVAILABLE, &self.page(request, "told to fail"))
            }
            _ => json(StatusCode::OK, &self.page(request, "ok")),
        }
    }

    fn page(&self, request: &http::Request<Incoming>, outcome: &str) -> serde_json::Value {
        json!({
            "service": self.service,
            "version": self.arguments.version,
            "instance": self.arguments.common.instance,
            "caller": caller(request),
            "outcome": outcome,
        })
    }

    fn set_fail_percent(&self, query: &str) -> Response {
        match query.strip_prefix("percent=").and_then(|percent| percent.parse().ok()) {
            Some(percent @ 0..=100) => {
                self.fail_percent.store(percent, Ordering::Relaxed);
                json(StatusCode::OK, &json!({"failPercent": percent}))
            }
            _ => json(StatusCode::BAD_REQUEST, &json!({"error": "want ?percent=0 to 100"})),
        }
    }
}

/// Who called, as the sidecar tells it: the URI of `x-forwarded-client-cert`.
fn caller(request: &http::Request<Incoming>) -> Option<String> {
    let header = request.headers().get("x-forwarded-client-cert")?.to_str().ok()?;
    let uri = header.split(';').find_map(|part| part.trim().strip_prefix("URI="))?;
    Some(uri.trim_matches('"').to_owned())
}
