//! Values that configuration and filters hang on endpoints, routes and requests. Envoy: `Metadata`.

use std::collections::BTreeMap;

use crate::matcher::StringMatcher;

/// One value. Envoy: `google.protobuf.Value`.
///
/// Values of different kinds are never equal: the number 1 is not the text `1`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number; JSON knows one kind only.
    Number(f64),
    /// A text.
    Text(String),
    /// Several values.
    List(Vec<Self>),
    /// Values by name.
    Struct(Fields),
}

/// Values by name.
pub type Fields = BTreeMap<String, Value>;

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Values of a request by the filter that found them. Envoy: dynamic metadata.
pub type Metadata = BTreeMap<String, Fields>;

/// Matches one value of metadata. Envoy: `MetadataMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataMatcher {
    /// Whose values: the filter that found them.
    pub filter: String,
    /// The way to the value, name by name.
    pub path: Vec<String>,
    /// What the value must be.
    pub value: ValueMatcher,
    /// Turns the result around, also of a value that is not there.
    pub invert: bool,
}

/// What a value must be. Envoy: `ValueMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatcher {
    /// There, and nothing.
    Null,
    /// This number.
    Number(f64),
    /// A number in `start..end`.
    Range {
        /// First number that matches.
        start: f64,
        /// First number that no longer matches.
        end: f64,
    },
    /// A text that matches.
    Text(StringMatcher),
    /// Yes or no.
    Bool(bool),
    /// There. `false` matches nothing, as in Envoy.
    Present(bool),
    /// A list with a value that matches.
    List(Box<Self>),
    /// One of these.
    Or(Vec<Self>),
}

impl MetadataMatcher {
    /// Whether the value is as wanted; `of`: the values of a filter.
    pub fn is_match<'a>(&self, of: impl FnOnce(&str) -> Option<&'a Fields>) -> bool {
        let mut names = self.path.iter();
        let first = names.next().and_then(|name| of(&self.filter)?.get(name));
        let value = names.fold(first, |value, name| match value {
            Some(Value::Struct(fields)) => fields.get(name),
            _ => None,
        });
        self.value.is_match(value) != self.invert
    }
}

impl ValueMatcher {
    /// Whether `value` matches, if there is one.
    pub fn is_match(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Or(any), value) => any.iter().any(|one| one.is_match(value)),
            (_, None) => false,
            (Self::Null, Some(value)) => *value == Value::Null,
            (Self::Number(want), Some(Value::Number(number))) => want == number,
            (Self::Range { start, end }, Some(Value::Number(number))) => (*start..*end).contains(number),
            (Self::Text(want), Some(Value::Text(text))) => want.is_match(text),
            (Self::Bool(want), Some(Value::Bool(on))) => want == on,
            (Self::Present(want), Some(_)) => *want,
            (Self::List(one), Some(Value::List(values))) => {
                values.iter().any(|value| one.is_match(Some(value)))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_way_and_compared_by_kind() {
        let inner = Fields::from([("n".to_owned(), Value::Number(1.0)), ("t".to_owned(), "1".into())]);
        let list = Value::List(vec!["x".into(), Value::Bool(true)]);
        let fields = Fields::from([("a".to_owned(), Value::Struct(inner)), ("l".to_owned(), list)]);
        let text = |text: &str| ValueMatcher::Text(StringMatcher::exact(text));
        for (path, value, want) in [
            (vec!["a", "n"], ValueMatcher::Number(1.0), true),
            (vec!["a", "n"], ValueMatcher::Range { start: 0.0, end: 1.0 }, false),
            (vec!["a", "n"], text("1"), false),
            (vec!["a", "t"], text("1"), true),
            (vec!["a", "none"], ValueMatcher::Null, false),
            (vec!["a"], ValueMatcher::Present(true), true),
            (vec!["none"], ValueMatcher::Present(true), false),
            (vec!["a"], ValueMatcher::Present(false), false),
            (vec!["l"], ValueMatcher::List(Box::new(text("x"))), true),
            (vec!["l"], text("x"), false),
            (vec!["l"], ValueMatcher::Or(vec![text("x"), ValueMatcher::Present(true)]), true),
        ] {
            for invert in [false, true] {
                let path = path.iter().map(|name| (*name).to_owned()).collect();
                let matcher = MetadataMatcher { filter: "f".into(), path, value: value.clone(), invert };
                let is_match = matcher.is_match(|filter| (filter == "f").then_some(&fields));
                assert_eq!(is_match, want != invert, "{matcher:?}");
            }
        }
    }
}
