//! The host that an upstream is told: its own name, where a route says so.

use http::header::{HOST, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Uri};

use crate::headers::names::ORIGINAL_HOST;

/// What becomes of the host that a rewrite replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRewritten {
    /// It is added to `x-forwarded-host`.
    pub append: bool,
    /// It is told in `x-envoy-original-host`.
    pub keep: bool,
}

impl HostRewritten {
    /// Notes the `original` host in `headers`.
    pub fn note(self, headers: &mut HeaderMap, original: Option<HeaderValue>) {
        let Some(original) = original.filter(|original| !original.is_empty()) else { return };
        if self.append {
            // One that is there already is not added once more.
            let before = headers.get_all(&FORWARDED_HOST).iter().filter(|value| !value.is_empty());
            let mut hosts: Vec<&[u8]> = before.map(HeaderValue::as_bytes).collect();
            let last = hosts.last().and_then(|hosts| hosts.rsplit(|&byte| byte == b',').next());
            if last.map(<[u8]>::trim_ascii) != Some(original.as_bytes()) {
                hosts.push(original.as_bytes());
            }
            if let Ok(joined) = HeaderValue::from_bytes(&hosts.join(&b","[..])) {
                headers.insert(&FORWARDED_HOST, joined);
            }
        }
        if self.keep {
            headers.insert(&ORIGINAL_HOST, original);
        }
    }

    /// Gives `request` the endpoint's name as its host; `None`: it has none.
    pub(super) fn rewrite<B>(self, request: &mut Request<B>, hostname: &str) -> Option<HeaderValue> {
        let host = HeaderValue::from_str(hostname).ok().filter(|host| !host.is_empty())?;
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let original = match &authority {
            Some(authority) => HeaderValue::from_str(authority).ok(),
            None => request.headers().get(HOST).cloned(),
        };
        if authority.is_some() {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        }
        self.note(request.headers_mut(), original);
        request.headers_mut().insert(HOST, host.clone());
        Some(host)
    }
}

static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
