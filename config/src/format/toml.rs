//! TOML with positions, from the `toml` crate's spanned tree.

use ::toml::Spanned;
use ::toml::de::{DeArray, DeTable, DeValue};

use super::{SyntaxError, too_deep};
use crate::DEPTH_MAX;
use crate::node::{Entry, Node, Span, Value};

/// The document of `text`.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let table = DeTable::parse(text).map_err(|error| SyntaxError {
        message: error.message().to_owned(),
        span: error.span().map(|range| Span::new(range.start, range.end)),
    })?;
    let span = span_of(&table);
    Ok(vec![Node { value: map(table.into_inner(), 0)?, span: Some(span) }])
}

fn span_of<T>(spanned: &Spanned<T>) -> Span {
    Span::new(spanned.span().start, spanned.span().end)
}

fn map(table: DeTable<'_>, depth: usize) -> Result<Value, SyntaxError> {
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        let key_span = Some(span_of(&key));
        entries.push(Entry { key: key.into_inner().into_owned(), key_span, value: node(value, depth + 1)? });
    }
    // The table is sorted by key; messages follow the file.
    entries.sort_by_key(|entry| entry.key_span.map(|span| span.start));
    Ok(Value::Map(entries))
}

fn list(array: DeArray<'_>, depth: usize) -> Result<Value, SyntaxError> {
    array.into_iter().map(|value| node(value, depth + 1)).collect::<Result<_, _>>().map(Value::List)
}

fn node(spanned: Spanned<DeValue<'_>>, depth: usize) -> Result<Node, SyntaxError> {
    let span = span_of(&spanned);
    if depth > DEPTH_MAX {
        return Err(too_deep(Some(span)));
    }
    let refuse = |message: String| SyntaxError { message, span: Some(span) };
    let value = match spanned.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix())
                .map_err(|_| refuse(format!("{integer} does not fit into 64 bits")))?;
            Value::Number(number.into())
        }
        DeValue::Float(float) => {
            let number = float.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            Value::Number(number.ok_or_else(|| refuse(format!("{float} is not a finite number")))?)
        }
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(array) => list(array, depth)?,
        DeValue::Table(table) => map(table, depth)?,
    };
    Ok(Node { value, span: Some(span) })
}
