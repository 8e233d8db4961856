//! Where requests hold tokens.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName};
use pillion_model::jwt::JwtProvider;

/// Where the tokens of one provider are looked for.
pub(super) struct Places {
    /// Header, and what stands before the token in it.
    headers: Vec<(HeaderName, String)>,
    params: Vec<String>,
    cookies: Vec<String>,
}

/// A token, and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) place: Place,
}

/// Where a token was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Header(HeaderName, String),
    Param(String),
    Cookie(String),
}

impl Places {
    /// Those that are given, else `authorization` and the parameter `access_token` (RFC 6750).
    pub(super) fn compile(provider: &JwtProvider) -> Result<Self, String> {
        let header = |(name, prefix): &(String, String)| {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("from_headers: `{name}` is not a header name"))?;
            Ok::<_, String>((name, prefix.clone()))
        };
        let mut places = Self {
            headers: provider.from_headers.iter().map(header).collect::<Result<_, _>>()?,
            params: provider.from_params.clone(),
            cookies: provider.from_cookies.clone(),
        };
        if places.headers.is_empty() && places.params.is_empty() && places.cookies.is_empty() {
            places.headers.push((AUTHORIZATION, "Bearer ".to_owned()));
            places.params.push("access_token".to_owned());
        }
        Ok(places)
    }

    /// Whether tokens are looked for there.
    pub(super) fn has(&self, place: &Place) -> bool {
        match place {
            Place::Header(name, prefix) => self.headers.iter().any(|(a, b)| (a, b) == (name, prefix)),
            Place::Param(name) => self.params.contains(name),
            Place::Cookie(name) => self.cookies.contains(name),
        }
    }

    /// Adds the tokens of a request to `found`, each place once.
    pub(super) fn find(&self, headers: &HeaderMap, query: Option<&str>, found: &mut Vec<Found>) {
        let mut add = |text: String, place: Place| {
            if !found.iter().any(|one| one.place == place) {
                found.push(Found { text, place });
            }
        };
        for (name, prefix) in &self.headers {
            let Some(value) = joined(headers, name) else { continue };
            let text = match (prefix.as_str(), value.find(prefix.as_str())) {
                ("", _) => value.into_owned(),
                (_, None) => continue,
                (_, Some(at)) => token_in(&value[at + prefix.len()..]).to_owned(),
            };
            add(text, Place::Header(name.clone(), prefix.clone()));
        }
        for name in &self.params {
            let pairs =
                query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            if let Some((_, value)) = pairs.into_iter().find(|(key, _)| key == name) {
                add(percent_decoded(value), Place::Param(name.clone()));
            }
        }
        for name in &self.cookies {
            if let Some(value) = cookie(headers, name) {
                add(value.to_owned(), Place::Cookie(name.clone()));
            }
        }
    }
}

/// All values of a header.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let first = values.next()?;
    Some(values.fold(first, |all, next| format!("{all},{next}").into()))
}

/// What begins with the first character that may stand in a token, if there is one.
fn token_in(text: &str) -> &str {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().position(is_part).map_or(text, |start| &text[start..])
}

/// A query without one of its parameters; `None`: nothing is left.
pub(super) fn without(query: &str, name: &str) -> Option<String> {
    let is_other = |pair: &&str| pair.split_once('=').map_or(*pair, |(key, _)| key) != name;
    let left: Vec<&str> = query.split('&').filter(is_other).collect();
    (!left.is_empty()).then(|| left.join("&"))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// Text whose `%XX` stand for bytes.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let is_hex = |pair: &&[u8]| byte == b'%' && pair.iter().all(u8::is_ascii_hexdigit);
        let hex = after.get(..2).filter(is_hex).and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_stay_in_a_query() {
        for (query, want) in
            [("t=1", None), ("a=1&t=1&b", Some("a=1&b")), ("tt=1&t=1&t=2", Some("tt=1")), ("t", None)]
        {
            assert_eq!(without(query, "t").as_deref(), want, "{query}");
        }
    }

    #[test]
    fn parameters_are_decoded() {
        for (text, want) in [("a%2Eb", "a.b"), ("%", "%"), ("%zz", "%zz"), ("%+1", "%+1"), ("a%", "a%")] {
            assert_eq!(percent_decoded(text), want);
        }
    }
}
