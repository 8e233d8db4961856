//! CONNECT to a service of the mesh. A TCP service gets the bytes; to an HTTP service the client
//! speaks HTTP inside the tunnel (gRPC clients with a proxy do), and each request is routed.

use std::sync::Arc;

use http::{Response, StatusCode};

use crate::body::Body;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::router::upgrade::{Tunnel, Upstream};
use crate::snapshot::Target;
use crate::upstream::{Attempt, Cause as Failed};

/// Opens a tunnel to an endpoint of `cluster`.
pub(crate) async fn run(x: &mut Exchange, cluster: &str) -> Step<Response<Body>> {
    let missing = Cause::NoCluster(StatusCode::SERVICE_UNAVAILABLE);
    let cluster = x.snapshot.clusters.get(cluster).ok_or(missing)?;
    let worker = &x.connection.worker;
    let target = Target::with_symbols(&worker.metrics.symbols, &worker.own_service_name, cluster);
    x.record.target = Some(target.clone());
    x.record.attempts = 1;
    let mut attempt = Attempt::default();
    match worker.pools.connect(&target.cluster, &mut attempt).await {
        Ok(upstream) => {
            x.record.upstream_host = Some(upstream.endpoint().address.to_string().into());
            x.tunnel = Some(Tunnel { upstream: Upstream::Tcp(upstream), idle: None });
            Ok(Response::new(Body::Empty))
        }
        Err(failure) => Err(match failure.cause {
            Failed::NoHealthyUpstream => Cause::NoHealthyUpstream,
            Failed::Dropped => Cause::DropOverload,
            Failed::Reset(reset) => Cause::UpstreamReset { reset, detail: failure.detail, retried: false },
        }
        .into()),
    }
}

/// Lets the client speak HTTP inside the tunnel, routed by the route configuration `routes`.
pub(crate) fn inner(x: &mut Exchange, routes: Arc<str>) -> Response<Body> {
    x.tunnel = Some(Tunnel { upstream: Upstream::Inner(routes), idle: None });
    Response::new(Body::Empty)
}
