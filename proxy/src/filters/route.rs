//! Finds the route.

use std::sync::Arc;

use http::{HeaderValue, Method};
use pillion_model::http::StripPort;
use pillion_model::matcher::RequestView;

use crate::chain::Step;
use crate::exchange::Exchange;
use crate::local_reply::Cause;
use crate::router;

/// Finds the route in the destination's own configuration or the connection manager's.
pub(crate) fn resolve(x: &mut Exchange) -> Step {
    let config = match &x.routes {
        Some(routes) => Arc::clone(routes),
        None => Arc::clone(x.hcm.route_config(&x.snapshot).ok_or(Cause::NoRouteConfiguration)?),
    };
    // A CONNECT keeps its port, but is routed without it.
    let routed = if x.head.method == Method::CONNECT && strips(x, x.head.authority()) {
        config.find(&WithoutPort(&x.head), x.draw)
    } else {
        config.find(&x.head, x.draw)
    };
    x.record.routed = routed;
    x.record.keep_request_headers(&x.head.headers);
    if x.record.routed.is_some() { Ok(()) } else { Err(Cause::NoRoute.into()) }
}

/// Finds the route once more, for what a filter has changed.
pub(super) fn again(x: &mut Exchange) {
    (x.record.routed, x.record.target, x.choice) = (None, None, None);
    // That there is none any more is the router's to answer.
    let _unrouted = resolve(x);
    router::choose_cluster(x);
}

/// Cuts the port off from the host, for everything that follows.
pub(crate) fn strip_port(x: &mut Exchange) {
    if x.hcm.config.strip_port == StripPort::None || x.head.method == Method::CONNECT {
        return;
    }
    let host = x.head.authority();
    if strips(x, host)
        && let Ok(host) = HeaderValue::from_str(without_port(host))
    {
        x.head.set_authority(host);
        x.keep_head();
    }
}

fn strips(x: &Exchange, authority: &str) -> bool {
    match x.hcm.config.strip_port {
        StripPort::None => false,
        StripPort::Any => true,
        StripPort::Matching => {
            let port = authority[without_port(authority).len()..].strip_prefix(':');
            port.and_then(|port| port.parse().ok()) == Some(x.connection.local.port())
        }
    }
}

/// A head whose authority has no port.
struct WithoutPort<'a>(&'a crate::exchange::Head);

impl RequestView for WithoutPort<'_> {
    fn method(&self) -> &str {
        self.0.method()
    }
    fn path(&self) -> &str {
        self.0.path()
    }
    fn query(&self) -> Option<&str> {
        self.0.query()
    }
    fn authority(&self) -> &str {
        without_port(self.0.authority())
    }
    fn scheme(&self) -> &str {
        self.0.scheme()
    }
    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.0.header(name, each);
    }
}

/// `host` of `host:port`; IPv6 addresses stand in brackets.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_cut_off() {
        for (authority, want) in
            [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:", "a:")]
        {
            assert_eq!(without_port(authority), want);
        }
    }
}
