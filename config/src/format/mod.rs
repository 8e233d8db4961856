//! File formats: text in, positioned trees out, one per document.

mod json;
mod toml;
mod yaml;

use std::sync::Arc;

use crate::diagnostic::Diagnostic;
use crate::node::{Node, Span};
use crate::{DEPTH_MAX, SOURCE_BYTES_MAX};

/// The formats a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// YAML; documents are separated by `---`.
    Yaml,
    /// JSON; one value, an array of resources, or values one after the other.
    Json,
    /// TOML; one resource, or an array of tables `[[resource]]`.
    Toml,
}

impl Format {
    /// The format a file name's ending tells; YAML if it tells none.
    pub fn of(name: &str) -> Self {
        match name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).as_deref() {
            Some("json") => Self::Json,
            Some("toml") => Self::Toml,
            _ => Self::Yaml,
        }
    }
}

/// One file: its name as shown in messages, its text, its format. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    /// As shown in messages.
    pub name: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
    /// How to read it.
    pub format: Format,
}

impl Source {
    /// A source whose format follows from its name.
    pub fn new(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.into(), format: Format::of(name) }
    }
}

/// One resource-shaped part of a source, with its path in the document (`""`, `[2]`, `resource[2]`).
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) path: String,
    pub(crate) node: Node,
}

/// A syntax error: what is wrong and where.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) message: String,
    pub(crate) span: Option<Span>,
}

/// Every document of `source`; empty YAML documents are left out.
pub(crate) fn documents(source: &Source) -> Result<Vec<Node>, Diagnostic> {
    if source.text.len() > SOURCE_BYTES_MAX {
        let message = format!("is {} bytes long, want at most {SOURCE_BYTES_MAX}", source.text.len());
        return Err(Diagnostic::new(Some(source), None, "", message));
    }
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let shift = source.text.len() - text.len();
    if shift != 0 {
        let inner = Source { text: text.into(), ..source.clone() };
        return documents(&inner);
    }
    let parsed = match source.format {
        Format::Yaml => yaml::parse(text),
        Format::Json => json::parse(text),
        Format::Toml => toml::parse(text),
    };
    parsed.map_err(|error| Diagnostic::new(Some(source), error.span, "", error.message))
}

/// Every resource of `source`: arrays of resources are taken apart.
pub(crate) fn parts(source: &Source) -> Result<Vec<Part>, Diagnostic> {
    use crate::node::Value;
    let mut parts = Vec::new();
    for node in documents(source)? {
        match (source.format, node) {
            (_, Node { value: Value::List(items), .. }) => {
                parts.extend(
                    items
                        .into_iter()
                        .enumerate()
                        .map(|(index, node)| Part { path: crate::path::index("", index), node }),
                );
            }
            (Format::Toml, node) if node.get("kind").is_none() => match toml_resources(node) {
                Ok(items) => parts.extend(items),
                Err(node) => parts.push(Part { path: String::new(), node }),
            },
            (_, node) => parts.push(Part { path: String::new(), node }),
        }
    }
    Ok(parts)
}

/// The tables of `[[resource]]`, if that is all there is.
fn toml_resources(mut node: Node) -> Result<Vec<Part>, Node> {
    use crate::node::Value;
    let Value::Map(entries) = &mut node.value else { return Err(node) };
    let is_list = matches!(
        entries.as_slice(),
        [entry] if entry.key == "resource" && matches!(entry.value.value, Value::List(_))
    );
    if !is_list {
        return Err(node);
    }
    let Some(Node { value: Value::List(items), .. }) = entries.pop().map(|entry| entry.value) else {
        return Ok(Vec::new());
    };
    let part = |(index, node)| Part { path: crate::path::index("resource", index), node };
    Ok(items.into_iter().enumerate().map(part).collect())
}

/// The error of a document that nests too deep.
fn too_deep(span: Option<Span>) -> SyntaxError {
    SyntaxError { message: format!("nests deeper than {DEPTH_MAX} levels"), span }
}
