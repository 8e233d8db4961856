//! Routes that are answered here.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use pillion_model::matcher::RequestView;
use pillion_model::route::{Redirect, RedirectPath};

use super::rewrite::PathRewriter;
use crate::exchange::Head;
use crate::filters::route::without_port;
use crate::local_reply::{Cause, LocalReply};

/// The configured response.
pub(super) fn respond(status: StatusCode, body: &Bytes) -> LocalReply {
    LocalReply::direct(status, body.clone(), "direct_response")
}

/// The configured redirect.
pub(super) fn redirect(head: &Head, redirect: &Redirect, rewrite: Option<&PathRewriter>) -> LocalReply {
    let status = match redirect.status {
        0 => StatusCode::MOVED_PERMANENTLY,
        status => StatusCode::from_u16(status).unwrap_or(StatusCode::MOVED_PERMANENTLY),
    };
    match HeaderValue::try_from(location(head, redirect, rewrite)) {
        Ok(location) => {
            LocalReply::direct(status, Bytes::new(), "direct_response").header(LOCATION, location)
        }
        Err(_) => Cause::PathNormalization.into(),
    }
}

fn location(head: &Head, redirect: &Redirect, rewrite: Option<&PathRewriter>) -> String {
    let authority = head.authority();
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let mut host = redirect.host.as_deref().unwrap_or(authority).to_owned();
    if let Some(port) = redirect.port {
        host = format!("{}:{port}", without_port(&host));
    } else if redirect.scheme.is_some() && redirect.host.is_none() {
        // A default port of the old scheme would be wrong under the new one.
        let default = if head.scheme == "https" { ":443" } else { ":80" };
        host = host.strip_suffix(default).unwrap_or(&host).to_owned();
    }
    let mut query = if redirect.strip_query { None } else { head.query() };
    let path = match (&redirect.path, rewrite) {
        (Some(RedirectPath::Full(path)), _) => {
            if path.contains('?') {
                query = None;
            }
            path.clone()
        }
        (_, Some(rewrite)) => rewrite.apply(head.path()),
        (_, None) => head.path().to_owned(),
    };
    match query {
        Some(query) => format!("{scheme}://{host}{path}?{query}"),
        None => format!("{scheme}://{host}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    #[test]
    fn redirects_as_envoy_writes_them() {
        let head = Head {
            method: Method::GET,
            uri: "http://a.example:80/x/y?q=1".parse().unwrap(),
            scheme: "http",
            headers: HeaderMap::new(),
            upgrade: None,
            grpc: false,
            metadata: None,
        };
        let full = |path: &str| Some(RedirectPath::Full(path.to_owned()));
        for (redirect, want) in [
            (Redirect { scheme: Some("https".into()), ..Redirect::default() }, "https://a.example/x/y?q=1"),
            (Redirect { port: Some(8443), ..Redirect::default() }, "http://a.example:8443/x/y?q=1"),
            (Redirect { host: Some("b".into()), strip_query: true, ..Redirect::default() }, "http://b/x/y"),
            (Redirect { path: full("/new"), ..Redirect::default() }, "http://a.example:80/new?q=1"),
            (Redirect { path: full("/new?r=2"), ..Redirect::default() }, "http://a.example:80/new?r=2"),
        ] {
            assert_eq!(location(&head, &redirect, None), want);
        }
    }
}
