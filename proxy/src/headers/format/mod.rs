//! Envoy's format operators (`%REQ(:PATH)%`), compiled when configuration is: used by access logs
//! and by header changes alike.

mod time;
mod value;

use std::borrow::Cow;
use std::fmt::Write as _;

use http::{HeaderMap, HeaderName};

use self::time::{TimePiece, parse_time};
use self::value::Simple;
use crate::record::Record;

/// A compiled format.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Operator { operator: Operator, length_max: Option<usize> },
}

/// What a value is computed from.
pub(crate) struct Context<'a> {
    /// What is known of the exchange so far.
    pub(crate) record: &'a Record,
    /// Request headers.
    pub(crate) request: &'a HeaderMap,
    /// Response headers, once there are any.
    pub(crate) response: Option<&'a HeaderMap>,
    /// Response trailers, once there are any.
    pub(crate) trailers: Option<&'a HeaderMap>,
}

/// A computed value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// Nothing to show: `-` in texts, `null` in JSON.
    Absent,
    /// A whole number.
    Number(u64),
    /// A text.
    Text(Cow<'a, str>),
}

/// A name of a header or of a part of the request line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Header(HeaderName),
}

#[derive(Clone, Debug)]
enum Operator {
    StartTime(Vec<TimePiece>),
    Request(Field, Option<Field>),
    Response(HeaderName, Option<HeaderName>),
    Trailer(HeaderName, Option<HeaderName>),
    Constant(String),
    Simple(Simple),
}

impl Format {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// What is wrong with which operator.
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (operator, length_max, after) = parse_operator(rest)?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Operator { operator, length_max });
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self { pieces })
    }

    /// The text, if the format holds no operator.
    pub(crate) fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Request headers the format reads.
    pub(crate) fn request_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.pieces.iter().flat_map(|piece| {
            let (first, second) = match piece {
                Piece::Operator { operator: Operator::Request(first, second), .. } => {
                    (Some(first), second.as_ref())
                }
                _ => (None, None),
            };
            [first, second].into_iter().flatten().filter_map(|field| match field {
                Field::Header(name) => Some(name),
                _ => None,
            })
        })
    }

    /// Response headers the format reads.
    pub(crate) fn response_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.pieces.iter().flat_map(|piece| {
            let (first, second) = match piece {
                Piece::Operator { operator: Operator::Response(first, second), .. } => {
                    (Some(first), second.as_ref())
                }
                _ => (None, None),
            };
            [first, second].into_iter().flatten()
        })
    }

    /// Appends the formatted text to `out`; absent values become `absent`.
    pub(crate) fn write(&self, context: &Context<'_>, absent: &str, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Operator { operator, length_max } => match operator.value(context) {
                    Value::Absent => out.push_str(absent),
                    Value::Number(number) => {
                        let _ = write!(out, "{number}");
                    }
                    Value::Text(text) => out.push_str(truncate(&text, *length_max)),
                },
            }
        }
    }

    /// One value with its type, if the format is one operator; else a text.
    pub(crate) fn value<'a>(&self, context: &Context<'a>) -> Value<'a> {
        if let [Piece::Operator { operator, length_max }] = self.pieces.as_slice() {
            return match operator.value(context) {
                Value::Text(text) => Value::Text(truncate(&text, *length_max).to_owned().into()),
                other => other,
            };
        }
        let mut text = String::new();
        self.write(context, "-", &mut text);
        Value::Text(text.into())
    }
}

fn truncate(text: &str, length_max: Option<usize>) -> &str {
    match length_max {
        Some(max) if text.len() > max => &text[..text.floor_char_boundary(max)],
        _ => text,
    }
}

/// Reads `NAME(argument):length%` and gives the rest.
fn parse_operator(text: &str) -> Result<(Operator, Option<usize>, &str), String> {
    let name_end = text
        .find(|char: char| !(char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_'))
        .ok_or_else(|| format!("`%{text}` is not closed by `%`"))?;
    let (name, mut rest) = text.split_at(name_end);
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let end = inner.find(')').ok_or_else(|| format!("`%{text}` has no closing `)`"))?;
        argument = Some(&inner[..end]);
        rest = &inner[end + 1..];
    }
    let mut length_max = None;
    if let Some(number) = rest.strip_prefix(':') {
        let end = number.find('%').unwrap_or(number.len());
        let parsed = number[..end].parse().map_err(|_| format!("`%{text}`: bad length"))?;
        length_max = Some(parsed);
        rest = &number[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| format!("`%{text}` is not closed by `%`"))?;
    Ok((operator(name, argument)?, length_max, rest))
}

fn operator(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let needed = || argument.ok_or_else(|| format!("%{name}% needs an argument, as in %{name}(X)%"));
    Ok(match name {
        "START_TIME" => Operator::StartTime(parse_time(argument.unwrap_or("%Y-%m-%dT%H:%M:%S.%3fZ"))?),
        "REQ" => {
            let (first, second) = alternatives(needed()?);
            Operator::Request(field(first)?, second.map(field).transpose()?)
        }
        "RESP" => {
            let (first, second) = alternatives(needed()?);
            Operator::Response(header(first)?, second.map(header).transpose()?)
        }
        "TRAILER" => {
            let (first, second) = alternatives(needed()?);
            Operator::Trailer(header(first)?, second.map(header).transpose()?)
        }
        "ENVIRONMENT" => Operator::Constant(std::env::var(needed()?).unwrap_or_else(|_| "-".to_owned())),
        "HOSTNAME" => Operator::Constant(
            std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_or_else(|_| "-".to_owned(), |name| name.trim().to_owned()),
        ),
        _ => Operator::Simple(
            Simple::ALL
                .iter()
                .find(|(text, _)| *text == name)
                .map(|&(_, simple)| simple)
                .ok_or_else(|| format!("format operator %{name}% is not supported"))?,
        ),
    })
}

fn alternatives(argument: &str) -> (&str, Option<&str>) {
    match argument.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (argument, None),
    }
}

fn field(name: &str) -> Result<Field, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        _ => Field::Header(header(name)?),
    })
}

fn header(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes())
        .map_err(|_| format!("`{name}` is not a header name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_formats_name_the_operator() {
        for (text, want) in [
            ("%NOPE%", "%NOPE% is not supported"),
            ("%REQ%", "needs an argument"),
            ("%REQ(X", "no closing"),
            ("%PROTOCOL", "not closed"),
            ("%START_TIME(%q)%", "time format %q"),
            ("%REQ(X):y%", "bad length"),
        ] {
            let error = Format::compile(text).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
        assert_eq!(Format::compile("100%% plain").unwrap().literal(), Some("100% plain"));
    }
}
