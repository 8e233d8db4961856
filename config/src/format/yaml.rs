//! YAML with positions, from serde-saphyr's spans.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::{SyntaxError, too_deep};
use crate::DEPTH_MAX;
use crate::node::{Entry, Node, Span, Value};

/// All documents of `text`; empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    // As many nodes as there are bytes at most: what is written out is read, what anchors make of little
    // is not.
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MIN.max(text.len()),
            max_events: (4 * NODES_MIN).max(4 * text.len()),
            max_documents: DOCUMENTS_MIN.max(text.len() / 4),
        },
    };
    let documents: Vec<Spanned<Tree>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| SyntaxError {
            message: message(&error),
            span: Some(place(text, error.location())),
        })?;
    documents
        .into_iter()
        .filter(|document| !matches!(document.value, Tree::Null))
        .map(|document| node(document, 0))
        .collect()
}

/// The least limits of what a text may hold.
const NODES_MIN: usize = 250_000;
const DOCUMENTS_MIN: usize = 1024;

/// serde-saphyr's message without its own place, which stands before ours.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    match first.find(" at line ").or_else(|| first.find(" at <")) {
        Some(place) => first[..place].to_owned(),
        None => first.to_owned(),
    }
}

/// Where an error is: what has no place of its own is missing at the end.
fn place(text: &str, location: Option<Location>) -> Span {
    let end = text.trim_end().len();
    let at_line = |location: Location| {
        let before = usize::try_from(location.line().checked_sub(1)?).ok()?;
        let line = text.split_inclusive('\n').take(before).map(str::len).sum::<usize>();
        Some(Span::new(line.min(end), line.min(end)))
    };
    let found = location.and_then(|location| span_of(location).or_else(|| at_line(location)));
    found.map_or_else(|| Span::new(end, end), |span| Span::new(span.start.min(end), span.end.min(end)))
}

fn span_of(location: Location) -> Option<Span> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len().unwrap_or_default()).ok()?;
    Some(Span::new(start, start + length))
}

fn node(spanned: Spanned<Tree>, depth: usize) -> Result<Node, SyntaxError> {
    let span = span_of(spanned.referenced);
    if depth > DEPTH_MAX {
        return Err(too_deep(span));
    }
    let value = match spanned.value {
        Tree::Null => Value::Null,
        Tree::Bool(value) => Value::Bool(value),
        Tree::Number(number) => Value::Number(number),
        Tree::Text(text) => Value::Text(text),
        Tree::List(items) => {
            Value::List(items.into_iter().map(|item| node(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        Tree::Map(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let key_span = span_of(key.referenced);
                map.push(Entry { key: key.value, key_span, value: node(value, depth + 1)? });
            }
            Value::Map(map)
        }
    };
    // A block's span runs to its end; its first character is where people look.
    let span = match value {
        Value::List(_) | Value::Map(_) => span.map(|span| Span::new(span.start, span.start)),
        _ => span,
    };
    Ok(Node { value, span })
}

/// Any YAML value, each part with its location.
enum Tree {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Tree, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Tree::Number).ok_or_else(|| E::custom("infinite and undefined numbers are not allowed"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries: Vec<(Spanned<String>, Spanned<Tree>)> = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            if entries.iter().any(|(have, _)| have.value == key.value) {
                return Err(A::Error::custom(format_args!("key {:?} stands here twice", key.value)));
            }
            entries.push((key, map.next_value()?));
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_be_as_long_as_it_likes() {
        let text = "- {a: 1, b: [2, 3]}\n".repeat(100_000);
        let Value::List(items) = &parse(&text).expect("it is read")[0].value else { panic!("no list") };
        assert_eq!(items.len(), 100_000);
    }

    #[test]
    fn anchors_make_little_of_little() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, of) in ["b", "c", "d", "e", "f", "g"].into_iter().zip(["a", "b", "c", "d", "e", "f"]) {
            let ten = vec![format!("*{of}"); 10].join(", ");
            text.push_str(&format!("{name}: &{name} [{ten}]\n"));
        }
        assert!(parse(&text).is_err());
    }
}
