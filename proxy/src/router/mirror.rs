//! Copies of requests to other clusters; their answers are read and forgotten.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use pillion_model::matcher::RequestView;

use crate::body::{Body, ReplayBuffer};
use crate::exchange::Exchange;
use crate::metrics::{Family, Symbol};
use crate::snapshot::{ClusterRef, ForwardTo, Target};
use crate::upstream::Attempt;

/// Time for a mirrored request where the route has no limit.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// The mirrors that take this request.
pub(super) fn chosen(forward: &ForwardTo) -> Vec<&Target> {
    forward
        .mirrors
        .iter()
        .filter(|mirror| mirror.share.is_none_or(|share| share.hits(fastrand::u64(..))))
        .filter_map(|mirror| match &mirror.to {
            ClusterRef::Ready(target) => Some(target),
            _ => None,
        })
        .collect()
}

/// Sends a copy of the request, whose body is recorded in `body`, to each of `targets`.
pub(super) fn send(
    x: &Exchange,
    targets: &[&Target],
    body: Option<&ReplayBuffer>,
    timeout: Option<Duration>,
) {
    for target in targets {
        let body = match body {
            None => Body::Empty,
            Some(buffer) => match buffer.reader() {
                Some(reader) => Body::Replay(reader),
                None => continue,
            },
        };
        let mut request = Request::new(body);
        *request.method_mut() = x.head.method.clone();
        *request.headers_mut() = x.head.headers.clone();
        if let Ok(host) = HeaderValue::from_str(&shadow_host(x.head.authority())) {
            request.headers_mut().insert(http::header::HOST, host);
        }
        if let Some(path) = x.head.uri.path_and_query() {
            *request.uri_mut() = path.clone().into();
        }
        let (worker, cluster) = (Rc::clone(&x.connection.worker), Arc::clone(&target.cluster));
        let (service, limit) = (target.service, timeout.unwrap_or(TIMEOUT_DEFAULT));
        let cut = worker.cut.clone();
        let task = async move {
            let mut attempt = Attempt::default();
            let exchange = async {
                let sent = worker.pools.send(&cluster, &mut attempt, &mut request).await.ok()?;
                let mut body = sent.response.into_body();
                while let Some(frame) = body.frame().await {
                    frame.ok()?;
                }
                Some(())
            };
            let answered = matches!(tokio::time::timeout(limit, exchange).await, Ok(Some(())));
            let outcome = if answered { Symbol::SENT } else { Symbol::FAILED };
            worker.metrics.add(Family::Mirrors, [service, outcome, Symbol::EMPTY], 1);
        };
        x.connection.worker.tasks.spawn_local(async move {
            cut.run_until_cancelled(task).await;
        });
    }
}

/// Envoy's mark of mirrored requests: `-shadow` behind the host, before the port.
fn shadow_host(authority: &str) -> String {
    let host = crate::filters::route::without_port(authority);
    format!("{host}-shadow{}", &authority[host.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadows_are_marked_before_the_port() {
        assert_eq!(shadow_host("a.example:80"), "a.example-shadow:80");
        assert_eq!(shadow_host("a"), "a-shadow");
    }
}
