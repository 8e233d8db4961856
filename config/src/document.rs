//! Any YAML or JSON document with the places of its values, for files whose meaning another crate knows
//! (Envoy bootstrap files).

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::format::{self, Source};
use crate::node::{Node, Position};

/// One document: its value, and where each part of it stands.
#[derive(Clone, Debug)]
pub struct Document {
    /// The value.
    pub value: serde_json::Value,
    node: Node,
    source: Source,
}

/// Reads the one document of `text`; the format follows from the ending of `name` (`.json`, `.toml`,
/// else YAML).
///
/// # Errors
///
/// A syntax error with its place, or a text with no document or several.
pub fn parse(text: &str, name: &str) -> Result<Document, Diagnostics> {
    let source = Source::new(name, text);
    let mut nodes = format::documents(&source).map_err(|diagnostic| Diagnostics(vec![diagnostic]))?;
    let refuse =
        |span, message: &str| Err(Diagnostics(vec![Diagnostic::new(Some(&source), span, "", message)]));
    match nodes.len() {
        0 => refuse(None, "holds no document"),
        1 => {
            let node = nodes.remove(0);
            Ok(Document { value: node.to_json(), node, source })
        }
        _ => refuse(nodes[1].span, "holds a second document, want one"),
    }
}

impl Document {
    /// Where the value at `path` stands (`static_resources.listeners[0].name`), or the deepest part of
    /// the path that is there.
    pub fn locate(&self, path: &str) -> Option<Position> {
        let span = self.node.locate(&crate::path::parse(path))?;
        Some(Position::of(&self.source.text, span.start))
    }

    /// A mistake at `path`.
    pub fn diagnostic(&self, path: &str, message: impl Into<String>) -> Diagnostic {
        let span = self.node.locate(&crate::path::parse(path));
        Diagnostic::new(Some(&self.source), span, path, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_places() {
        let yaml = "admin:\n  port: 1\nlisteners:\n- name: a\n  chains:\n  - {x: 1, y: [2, 3]}\n";
        let json = "{\"admin\": {\"port\": 1},\n \"listeners\": [{\"name\": \"a\",\n  \"chains\": [{\"x\": 1, \"y\": [2, 3]}]}]}";
        for (name, text, path, want) in [
            ("a.yaml", yaml, "listeners[0].chains[0].y[1]", (6, 19)),
            ("a.yaml", yaml, "listeners[0].name", (4, 9)),
            ("a.yaml", yaml, "admin.port.deeper", (2, 9)),
            ("a.json", json, "listeners[0].chains[0].y[1]", (3, 32)),
            ("a.json", json, "listeners[0].name", (2, 25)),
        ] {
            let document = parse(text, name).expect(name);
            let Position { line, column } = document.locate(path).expect(path);
            assert_eq!((line, column), want, "{name} {path}");
        }
        let [yaml, json] =
            [("a.yaml", yaml), ("a.json", json)].map(|(name, text)| parse(text, name).expect(name));
        assert_eq!(yaml.value, json.value);
    }

    #[test]
    fn there_is_one_document() {
        for (text, want) in [
            ("", "a.yaml: holds no document"),
            ("a: 1\n---\nb: 1\n", "a.yaml:3:1: holds a second document"),
            ("a: 1\nb: [1, {c: 2\n\n", "a.yaml:2:"),
            ("a: 1\nb: \"open\n", "a.yaml:2:"),
            ("a: 1\n  b: 2\n", "a.yaml:2:"),
            ("a: 1\na: 2\n", "a.yaml:2:1: "),
        ] {
            let message = parse(text, "a.yaml").expect_err(text).to_string();
            assert!(message.starts_with(want), "{text:?}: {message}");
        }
    }
}
