//! What consistent hashing hashes.

use http::HeaderValue;
use http::header::{COOKIE, SET_COOKIE};
use pillion_model::matcher::RequestView;
use pillion_model::route::{HashPolicy, HashSource};
use xxhash_rust::xxh64::xxh64;

use crate::exchange::Exchange;

/// A hash, and the cookie that makes the client come back with it.
#[derive(Default)]
pub(super) struct Hashed {
    pub(super) hash: Option<u64>,
    pub(super) set_cookie: Option<HeaderValue>,
}

/// Combines the policies as Envoy does: rotate left and xor.
pub(super) fn of(x: &Exchange, policies: &[HashPolicy]) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        if let Some(new) = one(x, &policy.source, &mut hashed.set_cookie) {
            hashed.hash = Some(hashed.hash.map_or(new, |old| old.rotate_left(1) ^ new));
        }
        if policy.terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

fn one(x: &Exchange, source: &HashSource, set_cookie: &mut Option<HeaderValue>) -> Option<u64> {
    match source {
        HashSource::Header(name) => match name.as_str() {
            ":authority" | "host" => Some(xxh64(x.head.authority().as_bytes(), 0)),
            ":path" => Some(xxh64(x.head.uri.path_and_query()?.as_str().as_bytes(), 0)),
            ":method" => Some(xxh64(x.head.method.as_str().as_bytes(), 0)),
            _ => {
                let mut values: Vec<&[u8]> =
                    x.head.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
                values.sort_unstable();
                values.first()?;
                // Of several values each is the seed of the next.
                Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
            }
        },
        HashSource::Query(name) => {
            let query = x.head.query()?;
            let value = query.split('&').find_map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (key == name).then_some(value)
            })?;
            Some(xxh64(value.as_bytes(), 0))
        }
        HashSource::SourceIp => Some(xxh64(x.record.remote.ip().to_string().as_bytes(), 0)),
        HashSource::Cookie { name, ttl, path } => match cookie(x, name) {
            Some(value) => Some(xxh64(value.as_bytes(), 0)),
            None => {
                let ttl = (*ttl)?;
                let value = format!("{:016x}", fastrand::u64(..));
                let mut text = format!("{name}=\"{value}\"");
                if !ttl.is_zero() {
                    text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                if !path.is_empty() {
                    text.push_str(&format!("; Path={path}"));
                }
                text.push_str("; HttpOnly");
                *set_cookie = HeaderValue::try_from(text).ok();
                Some(xxh64(value.as_bytes(), 0))
            }
        },
    }
}

fn cookie<'a>(x: &'a Exchange, name: &str) -> Option<&'a str> {
    x.head.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(|cookies| {
        cookies.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then(|| value.trim_matches('"'))
        })
    })
}

impl Hashed {
    /// Gives the client its cookie.
    pub(super) fn annotate<B>(self, response: &mut http::Response<B>) {
        if let Some(cookie) = self.set_cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
    }
}
