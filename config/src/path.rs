//! Field paths: `ports[0].name`, `labels["app.kubernetes.io/name"]`.

use std::fmt::Write as _;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

/// `path` with `key` appended, quoted if it is not a plain word.
pub(crate) fn key(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    match (plain, path.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{path}.{key}"),
        (false, _) => format!("{path}[{key:?}]"),
    }
}

/// `path` with `[index]` appended.
pub(crate) fn index(path: &str, index: usize) -> String {
    let mut text = String::with_capacity(path.len() + 4);
    let _ = write!(text, "{path}[{index}]");
    text
}

/// Reads a path written by [`key`] and [`index`]; a part that cannot be read ends it.
pub(crate) fn parse(path: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let Some(end) = closing_quote(quoted) else { break };
            let Ok(key) = serde_json::from_str(&rest[1..end + 3]) else { break };
            segments.push(Segment::Key(key));
            let after = &quoted[end + 1..];
            rest = after.strip_prefix(']').unwrap_or(after);
        } else if let Some(number) = rest.strip_prefix('[') {
            let Some((digits, after)) = number.split_once(']') else { break };
            let Ok(at) = digits.parse() else { break };
            segments.push(Segment::Index(at));
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            segments.push(Segment::Key(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    segments
}

/// The offset of the first quote that no backslash escapes.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_back_what_they_print() {
        let path = index(&key(&key("", "when"), "request.headers[x-\"a\"]"), 3);
        assert_eq!(path, r#"when["request.headers[x-\"a\"]"][3]"#);
        let want = [
            Segment::Key("when".to_owned()),
            Segment::Key("request.headers[x-\"a\"]".to_owned()),
            Segment::Index(3),
        ];
        assert_eq!(parse(&path), want);
        assert_eq!(parse("a[0].b").len(), 3);
        assert_eq!(parse("[1].b"), [Segment::Index(1), Segment::Key("b".to_owned())]);
        for broken in ["[", "[x]", "[\"", "..", "["] {
            parse(broken);
        }
    }
}
