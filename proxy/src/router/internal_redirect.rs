//! Redirects of upstreams that are followed here: the request that they ask for takes the place of the
//! one that was answered, and goes through the chain again from the route on.

use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, LOCATION};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use pillion_model::internal_redirect::{InternalRedirect, RedirectPredicate};
use pillion_model::matcher::RequestView;

use crate::body::{Body, ReplayBuffer};
use crate::exchange::{Exchange, Head};
use crate::headers::names::ORIGINAL_URL;
use crate::metrics::{Family, Symbol};
use crate::snapshot::{Routed, Target};

/// What is remembered of a request's redirects.
#[derive(Default)]
pub(crate) struct Redirects {
    followed: u32,
    /// The routes that were redirected from, and those that were led to.
    met: Vec<(String, String)>,
    /// Is to be made now.
    pub(crate) next: Option<Next>,
}

/// The request that a redirect asks for.
pub(crate) struct Next {
    pub(crate) head: Head,
    pub(crate) body: Body,
    /// Finds the route that was found already.
    pub(crate) draw: u64,
}

/// What has been sent, and may have to be sent elsewhere.
pub(super) struct Asked<'a> {
    pub(super) routed: &'a Routed,
    pub(super) target: &'a Target,
    pub(super) policy: &'a InternalRedirect,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<&'a ReplayBuffer>,
}

/// Whether `response` is a redirect that is followed; then `x` has the next request.
pub(super) fn follow(x: &mut Exchange, asked: Asked<'_>, response: &Response<Body>) -> bool {
    if !asked.policy.statuses.contains(&response.status().as_u16()) {
        return false;
    }
    let (manager, service) = (x.hcm.symbol, asked.target.service);
    let mut redirects = x.redirects.take().unwrap_or_default();
    let next = next(x, &mut redirects, asked, response);
    let outcome = *next.as_ref().err().unwrap_or(&Symbol::FOLLOWED);
    x.connection.worker.metrics.add(Family::Redirects, [manager, service, outcome], 1);
    redirects.next = next.ok();
    let follows = redirects.next.is_some();
    x.redirects = Some(redirects);
    follows
}

/// The next request, or why the redirect is the client's to follow.
fn next(
    x: &Exchange,
    redirects: &mut Redirects,
    asked: Asked<'_>,
    response: &Response<Body>,
) -> Result<Next, Symbol> {
    let Asked { routed, policy, headers, body, .. } = asked;
    let is_whole = body.is_none_or(|body| body.is_ended() && !body.is_let_go());
    let location = response.headers().get(LOCATION);
    let (Some(location), true) = (location, is_whole && x.progress.complete().is_some()) else {
        return Err(Symbol::FAILED);
    };
    let (target, scheme) = absolute(location).ok_or(Symbol::BAD_LOCATION)?;
    let crosses = scheme != x.head.scheme;
    if crosses && !policy.cross_scheme {
        return Err(Symbol::UNSAFE_SCHEME);
    }
    if redirects.followed >= policy.max {
        return Err(Symbol::TOO_MANY_REDIRECTS);
    }
    let mut head = Head {
        method: x.head.method.clone(),
        uri: x.head.uri.clone(),
        scheme: x.head.scheme,
        headers,
        upgrade: None,
        grpc: x.head.grpc,
        metadata: None,
    };
    let original = original_url(&head);
    copy(&policy.copied_headers, response.headers(), &mut head.headers);
    let host = target.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    head.headers.insert(HOST, host.ok_or(Symbol::BAD_LOCATION)?);
    head.uri = target.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
    head.scheme = scheme;
    let draw = fastrand::u64(..);
    let config = x.routes.as_ref().or_else(|| x.hcm.route_config(&x.snapshot));
    let found = config.and_then(|config| config.find(&head, draw)).ok_or(Symbol::NO_ROUTE)?;
    let (from, to) = (&routed.route().name, &found.route().name);
    let upgrades = crosses && scheme == "https";
    if !policy.predicates.iter().all(|one| accepts(one, &mut redirects.met, from, to, upgrades)) {
        return Err(Symbol::PREDICATE);
    }
    // RFC 9110 section 15.4.4.
    let drops =
        response.status() == StatusCode::SEE_OTHER && !matches!(head.method, Method::GET | Method::HEAD);
    if drops {
        head.method = Method::GET;
        head.headers.remove(CONTENT_LENGTH);
    }
    if let Some(original) = original {
        head.headers.insert(&ORIGINAL_URL, original);
    }
    let body = body.filter(|_| !drops).and_then(ReplayBuffer::reader);
    redirects.followed += 1;
    Ok(Next { head, body: body.map_or(Body::Empty, Body::Replay), draw })
}

/// An absolute URL, with its scheme.
fn absolute(location: &HeaderValue) -> Option<(Uri, &'static str)> {
    let uri: Uri = location.to_str().ok()?.parse().ok()?;
    let scheme = match uri.scheme_str()? {
        "http" => "http",
        "https" => "https",
        _ => return None,
    };
    uri.authority()?;
    Some((uri, scheme))
}

fn original_url(head: &Head) -> Option<HeaderValue> {
    let path = head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    HeaderValue::try_from(format!("{}://{}{path}", head.scheme, head.authority())).ok()
}

/// Headers of the response take the place of the request's; those that it has not are removed.
fn copy(names: &[String], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names.iter().filter_map(|name| HeaderName::try_from(name.as_str()).ok()) {
        to.remove(&name);
        for value in from.get_all(&name) {
            to.append(&name, value.clone());
        }
    }
}

/// Whether a redirect may lead from a route to another. `upgrades`: from `http` to `https`.
fn accepts(
    predicate: &RedirectPredicate,
    met: &mut Vec<(String, String)>,
    from: &str,
    to: &str,
    upgrades: bool,
) -> bool {
    match predicate {
        RedirectPredicate::AllowListed(names) => names.iter().any(|name| name == to),
        RedirectPredicate::SafeCrossScheme => !upgrades,
        RedirectPredicate::PreviousRoutes => {
            let is_new = !met.iter().any(|(had_from, had_to)| had_from == from && had_to == to);
            if is_new {
                met.push((from.to_owned(), to.to_owned()));
            }
            is_new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_urls_are_followed() {
        for (location, want) in [
            ("http://a.test/b?c=1#d", Some(("/b?c=1", "http"))),
            ("https://a.test", Some(("/", "https"))),
            ("/b", None),
            ("//a.test/b", None),
            ("a.test", None),
            ("ftp://a.test/b", None),
            ("", None),
        ] {
            let uri = absolute(&HeaderValue::from_static(location));
            let found = uri.as_ref().map(|(uri, scheme)| (uri.path_and_query().unwrap().as_str(), *scheme));
            assert_eq!(found, want, "{location}");
        }
    }

    #[test]
    fn from_one_route_each_other_is_met_once() {
        let mut met = Vec::new();
        let mut leads = |from, to| accepts(&RedirectPredicate::PreviousRoutes, &mut met, from, to, false);
        assert!(leads("a", "b") && leads("b", "a") && leads("a", "c"));
        assert!(!leads("a", "b"));
    }
}
