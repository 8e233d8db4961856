//! The one normalisation of request paths: what is routed is what is authorised.

use std::borrow::Cow;

use crate::http::EscapedSlashes;

/// How paths are normalised. Envoy: `normalize_path`, `merge_slashes`,
/// `path_with_escaped_slashes_action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Normalization {
    /// Remove dot segments, decode what need not be encoded, turn `\` into `/`.
    pub dots: bool,
    /// Merge adjacent slashes.
    pub merge_slashes: bool,
    /// `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// What normalisation makes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Normalized<'a> {
    /// Route and authorise this.
    Path(Cow<'a, str>),
    /// Answer 307 to this path (`UnescapeAndRedirect` found an escaped slash).
    Redirect(String),
    /// Answer 400: `path_normalization_failed`.
    Reject,
}

/// Normalises `path`: the part of the request target before `?`, beginning with `/`.
///
/// Nothing is allocated when nothing changes.
pub fn normalize(path: &str, rules: Normalization) -> Normalized<'_> {
    let mut path = Cow::Borrowed(path);
    let mut redirect = false;
    if rules.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(&path) {
        match rules.escaped_slashes {
            EscapedSlashes::Keep => {}
            EscapedSlashes::Reject => return Normalized::Reject,
            EscapedSlashes::UnescapeAndRedirect => {
                redirect = true;
                path = Cow::Owned(unescape_slashes(&path));
            }
            EscapedSlashes::UnescapeAndForward => path = Cow::Owned(unescape_slashes(&path)),
        }
    }
    if rules.dots && !is_plain(&path) {
        let Some(clean) = remove_dots(&path) else { return Normalized::Reject };
        path = Cow::Owned(clean);
    }
    if rules.merge_slashes && path.contains("//") {
        path = Cow::Owned(merge(&path));
    }
    if redirect { Normalized::Redirect(path.into_owned()) } else { Normalized::Path(path) }
}

/// Whether dot removal and decoding would change nothing, decided in one pass.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.first() == Some(&b'/')
        && !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\'))
        && !bytes.windows(2).any(|pair| pair == b"/.")
}

/// `None`: a broken escape, an encoded NUL, or a path that does not begin with `/`.
fn remove_dots(path: &str) -> Option<String> {
    let decoded = decode_unreserved(path)?;
    let rest = decoded.strip_prefix('/')?;
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        // `/..;x` is a dot segment too: an origin that strips path parameters would see one.
        match segment.split(';').next().unwrap_or_default() {
            "." => {
                if last {
                    kept.push("");
                }
            }
            ".." => {
                // Above the root there is nothing, and it stays the root (RFC 3986 section 5.2.4).
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    Some(format!("/{}", kept.join("/")))
}

/// Decodes escapes of unreserved characters, upper-cases the others, turns `\` into `/`.
fn decode_unreserved(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => out.push('/'),
            b'%' => {
                let hex = bytes.get(at + 1..at + 3).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
                let code = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
                match code {
                    Some(0) => return None,
                    Some(code) if code.is_ascii_alphanumeric() || b"-._~".contains(&code) => {
                        out.push(char::from(code));
                        at += 2;
                    }
                    // Encoded as it came; a `%` that encodes nothing stands for itself.
                    _ => out.push('%'),
                }
            }
            _ => {
                let char = path[at..].chars().next()?;
                out.push(char);
                at += char.len_utf8() - 1;
            }
        }
        at += 1;
    }
    Some(out)
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(is_escaped_slash)
}

fn is_escaped_slash(part: &[u8]) -> bool {
    part.eq_ignore_ascii_case(b"%2f") || part.eq_ignore_ascii_case(b"%5c")
}

fn unescape_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.as_bytes().windows(3).position(is_escaped_slash) {
        out.push_str(&rest[..at]);
        out.push(if rest.as_bytes()[at + 1] == b'2' { '/' } else { '\\' });
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    out
}

fn merge(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for char in path.chars() {
        if char != '/' || !out.ends_with('/') {
            out.push(char);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Normalization =
        Normalization { dots: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Keep };

    fn check(path: &str, rules: Normalization, want: Option<&str>) {
        let got = match normalize(path, rules) {
            Normalized::Path(path) => Some(path.into_owned()),
            _ => None,
        };
        assert_eq!(got.as_deref(), want, "{path}");
    }

    #[test]
    fn dots_slashes_and_needless_escapes_go() {
        for (path, want) in [
            ("/a/b", Some("/a/b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/b/..", Some("/a/")),
            ("/a/b/.", Some("/a/b/")),
            ("/..", Some("/")),
            ("/a/../../b", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/..;x/b", Some("/b")),
            ("/%61dmin", Some("/admin")),
            ("/a%2fb", Some("/a%2fb")),
            ("/a\\..\\b", Some("/b")),
            ("//a///b/", Some("/a/b/")),
            ("/a%zz", Some("/a%zz")),
            ("/a%0", Some("/a%0")),
            ("/a%00", None),
            ("a", None),
            ("/é", Some("/é")),
        ] {
            check(path, ALL, want);
        }
    }

    #[test]
    fn escaped_slashes_follow_the_rule_set() {
        let with = |escaped_slashes| Normalization { escaped_slashes, ..Normalization::default() };
        check("/a%2Fb", with(EscapedSlashes::Keep), Some("/a%2Fb"));
        check("/a%2Fb", with(EscapedSlashes::UnescapeAndForward), Some("/a/b"));
        check("/a%5cb", with(EscapedSlashes::UnescapeAndForward), Some("/a\\b"));
        assert_eq!(normalize("/a%2fb", with(EscapedSlashes::Reject)), Normalized::Reject);
        assert_eq!(
            normalize("/a%2fb", with(EscapedSlashes::UnescapeAndRedirect)),
            Normalized::Redirect("/a/b".into())
        );
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing_more(path in "/[a-z./%;\\\\2eEfF0-9é]{0,24}") {
            if let Normalized::Path(once) = normalize(&path, ALL) {
                let twice = normalize(&once, ALL);
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."), "{}", once);
                // A decoded `%` never makes a new escape: `%25` stays as it is.
                prop_assert_eq!(twice, Normalized::Path(once.clone()));
            }
        }
    }
}
