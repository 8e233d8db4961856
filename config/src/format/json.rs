//! JSON with positions. serde_json forgets where values stand, so values are found here and single
//! tokens are handed to it.

use super::{SyntaxError, too_deep};
use crate::DEPTH_MAX;
use crate::node::{Entry, Node, Span, Value};

/// All values of `text`, one after the other.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut parser = Parser { text, at: 0 };
    let mut nodes = Vec::new();
    loop {
        parser.skip_space();
        if parser.at == text.len() {
            return Ok(nodes);
        }
        nodes.push(parser.value(0)?);
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn fail<T>(&self, want: &str) -> Result<T, SyntaxError> {
        let found = self.text[self.at..].chars().next();
        let message = match found {
            None => format!("the text ends here, want {want}"),
            Some(c) => format!("got {c:?}, want {want}"),
        };
        let end = self.at + found.map_or(0, char::len_utf8);
        Err(SyntaxError { message, span: Some(Span::new(self.at, end)) })
    }

    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        if depth > DEPTH_MAX {
            return Err(too_deep(Some(Span::new(self.at, self.at + 1))));
        }
        self.skip_space();
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.text()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            _ => return self.fail("a JSON value"),
        };
        Ok(Node { value, span: Some(Span::new(start, self.at)) })
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, SyntaxError> {
        if !self.text[self.at..].starts_with(word) {
            return self.fail("true, false or null");
        }
        self.at += word.len();
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        serde_json::from_str(text).map(Value::Number).map_err(|_| SyntaxError {
            message: format!("{text:?} is not a JSON number"),
            span: Some(Span::new(start, self.at)),
        })
    }

    fn text(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        self.at += 1;
        let mut escaped = false;
        loop {
            match self.peek() {
                None => return self.fail("the closing quote of a text"),
                Some(b'"') if !escaped => break,
                Some(byte) => escaped = byte == b'\\' && !escaped,
            }
            self.at += 1;
        }
        self.at += 1;
        serde_json::from_str(&self.text[start..self.at]).map_err(|error| SyntaxError {
            message: format!("is not a JSON text: {}", without_place(&error.to_string())),
            span: Some(Span::new(start, self.at)),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return self.fail("`,` or `]`"),
            }
        }
        self.at += 1;
        Ok(Value::List(items))
    }

    fn map(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        self.at += 1;
        let mut entries: Vec<Entry> = Vec::new();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Map(entries));
        }
        loop {
            entries.push(self.entry(depth, &entries)?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return self.fail("`,` or `}`"),
            }
        }
        self.at += 1;
        Ok(Value::Map(entries))
    }

    fn entry(&mut self, depth: usize, before: &[Entry]) -> Result<Entry, SyntaxError> {
        self.skip_space();
        if self.peek() != Some(b'"') {
            return self.fail("a key in double quotes");
        }
        let start = self.at;
        let key = self.text()?;
        let key_span = Some(Span::new(start, self.at));
        if before.iter().any(|entry| entry.key == key) {
            return Err(SyntaxError { message: format!("key {key:?} stands here twice"), span: key_span });
        }
        self.skip_space();
        if self.peek() != Some(b':') {
            return self.fail("`:`");
        }
        self.at += 1;
        Ok(Entry { key, key_span, value: self.value(depth + 1)? })
    }
}

/// serde_json's message without ` at line 1 column 3`, which counts from the token.
fn without_place(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mistakes_are_found_where_they_stand() {
        for (text, at, want) in [
            ("{\"a\": 1,}", 8, "a key in double quotes"),
            ("{\"a\" 1}", 5, "`:`"),
            ("[1 2]", 3, "`,` or `]`"),
            ("{\"a\": 1, \"a\": 2}", 9, "twice"),
            ("\"abc", 4, "closing quote"),
            ("{\"a\": 01}", 6, "not a JSON number"),
            ("\"\\q\"", 0, "invalid escape"),
            ("nul", 0, "null"),
            ("{} x", 3, "a JSON value"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.span.map(|span| span.start), Some(at), "{text}: {}", error.message);
            assert!(error.message.contains(want), "{text}: {}", error.message);
        }
        assert!(parse(&"[".repeat(10_000)).is_err());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(value in json(), pretty in any::<bool>()) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            let nodes = parse(&text).expect("serde_json wrote it");
            prop_assert_eq!(nodes.len(), 1);
            prop_assert_eq!(nodes[0].to_json(), value);
        }

        #[test]
        fn never_panics(text in ".{0,64}") {
            let _ = parse(&text);
        }
    }
}
