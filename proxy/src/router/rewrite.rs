//! Path and host rewrites.

use http::HeaderValue;
use pillion_model::matcher::RequestView;
use pillion_model::route::{HostRewrite, PathMatch, PathRewrite, RouteMatch};

use crate::chain::Step;
use crate::exchange::Head;
use crate::headers::names::ORIGINAL_PATH;
use crate::local_reply::Cause;
use crate::snapshot::ForwardTo;
use crate::upstream::HostRewritten;

/// A compiled path rewrite.
#[derive(Clone, Debug)]
pub(crate) enum PathRewriter {
    /// Replaces that many bytes at the front.
    Prefix { length: usize, with: String },
    /// Replaces the whole path.
    Whole(String),
    /// Replaces every match.
    Regex { pattern: regex::Regex, with: String },
}

/// Largest compiled program, in bytes.
const REGEX_SIZE_MAX: usize = 1 << 20;

impl PathRewriter {
    /// Compiles `rewrite` for paths that `matches` has matched.
    ///
    /// # Errors
    ///
    /// What is wrong with the pattern.
    pub(crate) fn compile(rewrite: &PathRewrite, matches: &RouteMatch) -> Result<Self, String> {
        Ok(match rewrite {
            PathRewrite::Prefix(with) => match &matches.path {
                PathMatch::Prefix(prefix) | PathMatch::SegmentPrefix(prefix) => {
                    Self::Prefix { length: prefix.len(), with: with.clone() }
                }
                PathMatch::Exact(_) | PathMatch::Regex(_) => Self::Whole(with.clone()),
                PathMatch::Connect => return Err("a CONNECT request has no path to rewrite".to_owned()),
            },
            PathRewrite::Regex { pattern, substitution } => Self::Regex {
                pattern: regex::RegexBuilder::new(pattern)
                    .size_limit(REGEX_SIZE_MAX)
                    .build()
                    .map_err(|error| format!("path rewrite: {error}"))?,
                with: substitution_of(substitution),
            },
        })
    }

    /// The new path.
    pub(crate) fn apply(&self, path: &str) -> String {
        match self {
            Self::Prefix { length, with } => {
                let rest = path.get(*length..).unwrap_or_default();
                let mut new = String::with_capacity(with.len() + rest.len() + 1);
                new.push_str(with);
                new.push_str(rest);
                if !new.starts_with('/') {
                    new.insert(0, '/');
                }
                new
            }
            Self::Whole(with) => with.clone(),
            Self::Regex { pattern, with } => pattern.replace_all(path, with.as_str()).into_owned(),
        }
    }
}

/// RE2's `\1` in the regex crate's `${1}`; its `$` stands for itself.
fn substitution_of(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            _ => out.push(char),
        }
    }
    out
}

/// Rewrites path and host as the route says. Both originals are kept in headers.
pub(super) fn apply(head: &mut Head, forward: &ForwardTo, suppress_envoy_headers: bool) -> Step {
    let by_path = forward.host_by_path.as_ref().map(|rewriter| rewriter.apply(head.path()));
    if let Some(rewriter) = &forward.rewrite {
        let old = head.uri.path_and_query().map(http::uri::PathAndQuery::as_str).unwrap_or_default();
        let original = HeaderValue::from_str(old).ok();
        let mut new = rewriter.apply(head.path());
        if let Some(query) = head.query() {
            new.push('?');
            new.push_str(query);
        }
        if let Some(original) = original
            && !suppress_envoy_headers
        {
            head.headers.insert(&ORIGINAL_PATH, original);
        }
        head.set_path(&new).map_err(|_error| Cause::PathNormalization)?;
    }
    let host = match &forward.host_rewrite {
        Some(HostRewrite::Literal(host)) => HeaderValue::from_str(host).ok(),
        Some(HostRewrite::Header(name)) => head.headers.get(name).filter(|host| !host.is_empty()).cloned(),
        Some(HostRewrite::PathRegex { .. }) => {
            by_path.filter(|host| !host.is_empty()).and_then(|host| HeaderValue::try_from(host).ok())
        }
        // The endpoint's name is known once it is chosen.
        Some(HostRewrite::Auto) | None => None,
    };
    if let Some(host) = host {
        let original = HeaderValue::from_str(head.authority()).ok();
        let keep = HostRewritten { append: forward.append_forwarded_host, keep: !suppress_envoy_headers };
        keep.note(&mut head.headers, original);
        head.set_authority(host);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_rewritten_by_what_matched() {
        let prefix =
            |text: &str| RouteMatch { path: PathMatch::Prefix(text.into()), ..RouteMatch::default() };
        let exact = RouteMatch { path: PathMatch::Exact("/old".into()), ..RouteMatch::default() };
        let to = |text: &str| PathRewrite::Prefix(text.into());
        let regex = PathRewrite::Regex { pattern: "^/v(\\d+)/".into(), substitution: "/\\1$/".into() };
        for (rewrite, matches, path, want) in [
            (to("/"), prefix("/v2"), "/v2/a", "//a"),
            (to("/"), prefix("/v2/"), "/v2/a", "/a"),
            (to(""), prefix("/v2"), "/v2", "/"),
            (to("/new"), exact, "/old", "/new"),
            (regex, prefix("/"), "/v7/a", "/7$/a"),
        ] {
            let rewriter = PathRewriter::compile(&rewrite, &matches).unwrap();
            assert_eq!(rewriter.apply(path), want, "{rewrite:?} {path}");
        }
    }
}
