//! Destinations outside the mesh: resolved by name, spoken to in plain HTTP/1.1, or tunnelled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pillion_net::resolve::Target;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::body::Body;
use crate::chain::Step;
use crate::exchange::Exchange;
use crate::flags::Flags;
use crate::headers::hop;
use crate::local_reply::{Cause, LocalReply};
use crate::router::upgrade::{Tunnel, Upstream};
use crate::upstream::Clusters;

/// Time to resolve and connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Forwards to a name outside the mesh.
pub(crate) async fn run(x: &mut Exchange, target: &Target) -> Step<Response<Body>> {
    let shared = Arc::clone(x.connection.worker.shared());
    let stream = match timeout(CONNECT_TIMEOUT, connect(&shared.clusters, target)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(cause)) => return Err(cause.into()),
        Err(_elapsed) => {
            return Err(Cause::EgressFailed(format!("connecting to {target} took too long")).into());
        }
    };
    x.record.attempts = 1;
    x.record.upstream_host = stream.peer_addr().ok().map(|address| address.to_string().into());
    if x.head.method == http::Method::CONNECT {
        x.tunnel = Some(Tunnel { upstream: Upstream::Plain(stream), idle: None });
        return Ok(Response::new(Body::Empty));
    }
    send(x, stream).await
}

async fn connect(clusters: &Clusters, target: &Target) -> Result<TcpStream, Cause> {
    let addresses = clusters.resolve(&target.host).await.map_err(Cause::EgressUnresolved)?;
    let mut last = format!("{target} has no address");
    for address in addresses {
        let address = SocketAddr::new(address, target.port);
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = format!("cannot connect to {target} at {address}: {error}"),
        }
    }
    Err(Cause::EgressFailed(last))
}

/// Sends the request on a connection of its own.
async fn send(x: &mut Exchange, stream: TcpStream) -> Step<Response<Body>> {
    let (mut client, connection) =
        http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
    let cut = x.connection.worker.cut.clone();
    x.connection.worker.tasks.spawn_local(async move {
        cut.run_until_cancelled(connection).await;
    });
    let mut request = http::Request::new(std::mem::take(&mut x.body));
    *request.version_mut() = Version::HTTP_11;
    *request.method_mut() = x.head.method.clone();
    *request.headers_mut() = std::mem::take(&mut x.head.headers);
    if let Some(host) = x.head.uri.authority().and_then(|host| host.as_str().parse().ok()) {
        request.headers_mut().insert(http::header::HOST, host);
    }
    if let Some(path) = x.head.uri.path_and_query() {
        *request.uri_mut() = path.clone().into();
    }
    let response = tokio::select! {
        sent = client.send_request(request) => sent.map_err(|error| lost(&error))?,
        expired = x.timers.expired(None) => return Err(x.timers.cause(expired).into()),
    };
    x.record.details = Some("via_upstream".into());
    let mut response = response.map(Body::from);
    hop::strip_response(response.headers_mut());
    Ok(response)
}

fn lost(error: &hyper::Error) -> LocalReply {
    let mut reply = LocalReply::from(Cause::EgressFailed(error.to_string()));
    reply.flags = Flags::UPSTREAM_CONNECTION_TERMINATION;
    reply
}
