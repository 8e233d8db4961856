//! A server that gets the head of a request and answers with a status.

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use pillion_model::authz::AuthzHttp;
use pillion_model::matcher::{RequestView, StringMatcher};
use pillion_xds::authz::{Answer, HeaderChange, How};

use super::shown::Shown;
use super::{Authz, Failed, read};
use crate::body::Body;
use crate::exchange::Exchange;
use crate::headers::hop;
use crate::headers::names::{AUTH_HEADERS_TO_REMOVE, AUTH_PARTIAL_BODY};

/// The question: the request's method, path and host, what is allowed of its headers, and the body.
pub(super) fn question(
    x: &Exchange,
    authz: &Authz,
    http: &AuthzHttp,
    shown: &Shown,
) -> Option<Request<Body>> {
    let path = x.head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Body::full(shown.bytes.clone()));
    *request.method_mut() = x.head.method.clone();
    *request.uri_mut() = format!("{}{path}", http.path_prefix).parse::<Uri>().ok()?;
    let headers = request.headers_mut();
    for (name, value) in &x.head.headers {
        if *name != HOST && *name != CONTENT_LENGTH && is_shown(authz, name) {
            headers.append(name, value.clone());
        }
    }
    headers.insert(HOST, HeaderValue::from_str(x.head.authority()).ok()?);
    headers.insert(CONTENT_LENGTH, shown.bytes.len().into());
    if let Some(partial) = shown.partial {
        headers.insert(&AUTH_PARTIAL_BODY, HeaderValue::from_static(if partial { "true" } else { "false" }));
    }
    for (name, value) in &authz.headers {
        headers.insert(name, value.clone());
    }
    Some(request)
}

fn is_shown(authz: &Authz, name: &HeaderName) -> bool {
    let settings = &authz.settings;
    let allowed = *name == AUTHORIZATION || fits(&settings.allowed_headers, name);
    allowed && !fits(&settings.disallowed_headers, name) && !hop::is_hop_by_hop(name) && *name != TE
}

fn fits(matchers: &[StringMatcher], name: &HeaderName) -> bool {
    matchers.iter().any(|matcher| matcher.is_match(name.as_str()))
}

/// What the answer means: 200 is yes, 5xx is none, everything else is no.
pub(super) async fn answer(http: &AuthzHttp, response: Response<Body>) -> Result<Answer, Failed> {
    let (head, body) = response.into_parts();
    if head.status.is_server_error() {
        return Err(Failed);
    }
    let (body, _trailers) = read(body).await?;
    let take = |fit: &dyn Fn(&HeaderName) -> bool, how: How| {
        let fitting = head.headers.iter().filter(|(name, _)| fit(name));
        fitting
            .map(|(name, value)| HeaderChange {
                name: name.as_str().to_owned(),
                value: value.as_bytes().to_vec(),
                how,
            })
            .collect::<Vec<_>>()
    };
    if head.status == http::StatusCode::OK {
        let mut headers = take(&|name| fits(&http.upstream_headers, name), How::Set);
        headers.extend(take(&|name| fits(&http.upstream_headers_append, name), How::Add));
        let remove =
            head.headers.get_all(&AUTH_HEADERS_TO_REMOVE).iter().filter_map(|value| value.to_str().ok());
        return Ok(Answer {
            allowed: true,
            headers,
            headers_to_remove: remove
                .flat_map(|names| names.split(','))
                .map(|name| name.trim().to_owned())
                .collect(),
            response_headers: take(&|name| fits(&http.client_headers_on_success, name), How::Add),
            ..Answer::default()
        });
    }
    let always = [WWW_AUTHENTICATE, LOCATION, CONTENT_TYPE];
    let to_client = |name: &HeaderName| {
        http.client_headers.is_empty() || always[..2].contains(name) || fits(&http.client_headers, name)
    };
    Ok(Answer {
        allowed: false,
        status: head.status.as_u16(),
        body: String::from_utf8_lossy(&body).into_owned(),
        headers: take(&to_client, How::Add),
        ..Answer::default()
    })
}
