//! Reads typed values from a positioned tree and collects every mistake on the way.
//!
//! A reading function returns `None` after it has reported why; nobody stops at the first mistake.
//! [`Object`] remembers which fields were asked for, so that the rest is reported as unknown.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use pillion_model::matcher::Regex;
use pillion_model::name::{NameError, ServiceName, check_label, check_name};

use crate::DurationText;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::format::Source;
use crate::node::{Entry, Node, Value};
use crate::path;

/// Collects the mistakes of one document.
pub(crate) struct Sink<'a> {
    source: Option<&'a Source>,
    found: RefCell<Vec<Diagnostic>>,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(source: Option<&'a Source>) -> Self {
        Self { source, found: RefCell::default() }
    }

    pub(crate) fn into_diagnostics(self) -> Diagnostics {
        let mut found = self.found.into_inner();
        found.sort_by_key(Diagnostic::position);
        Diagnostics(found)
    }
}

/// One value with its path.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    pub(crate) node: &'a Node,
    pub(crate) path: String,
    sink: &'a Sink<'a>,
}

impl<'a> Field<'a> {
    pub(crate) fn new(node: &'a Node, path: String, sink: &'a Sink<'a>) -> Self {
        Self { node, path, sink }
    }

    /// Reports a mistake at this value.
    pub(crate) fn refuse(&self, message: impl Into<String>) {
        let found = Diagnostic::new(self.sink.source, self.node.span, self.path.as_str(), message);
        self.sink.found.borrow_mut().push(found);
    }

    /// Reports that this value is not what is wanted.
    fn want<T>(&self, want: impl Display) -> Option<T> {
        self.refuse(format!("got {}, want {want}", self.node.describe()));
        None
    }

    /// The same place with another value.
    pub(crate) fn at<'b>(&'b self, node: &'b Node) -> Field<'b> {
        Field { node, path: self.path.clone(), sink: self.sink }
    }

    fn item(&self, node: &'a Node, path: String) -> Self {
        Self { node, path, sink: self.sink }
    }

    pub(crate) fn object(self) -> Option<Object<'a>> {
        match &self.node.value {
            Value::Map(entries) => Some(Object { field: self, entries, asked: Vec::new() }),
            _ => self.want("a map"),
        }
    }

    /// A list, each item read by `read`; items that cannot be read are reported and left out.
    pub(crate) fn list<T>(self, read: impl Fn(Self) -> Option<T>) -> Option<Vec<T>> {
        let Value::List(items) = &self.node.value else { return self.want("a list") };
        let field = |(index, node)| self.item(node, path::index(&self.path, index));
        Some(items.iter().enumerate().map(field).filter_map(read).collect())
    }

    /// As [`Field::list`], but an empty list is a mistake.
    pub(crate) fn list_of_some<T>(self, read: impl Fn(Self) -> Option<T>) -> Option<Vec<T>> {
        if matches!(&self.node.value, Value::List(items) if items.is_empty()) {
            self.refuse("is empty, want at least one item");
            return None;
        }
        self.list(read)
    }

    /// A map with keys chosen by the user.
    pub(crate) fn map<T>(
        self,
        key: impl Fn(&str) -> Result<(), String>,
        read: impl Fn(Self) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        let Value::Map(entries) = &self.node.value else { return self.want("a map") };
        let mut map = BTreeMap::new();
        for entry in entries {
            let field = self.item(&entry.value, path::key(&self.path, &entry.key));
            if let Err(message) = key(&entry.key) {
                field.refuse_key(entry, format!("key {:?} {message}", entry.key));
            }
            if let Some(value) = read(field) {
                map.insert(entry.key.clone(), value);
            }
        }
        Some(map)
    }

    fn refuse_key(&self, entry: &Entry, message: String) {
        let found = Diagnostic::new(self.sink.source, entry.key_span, self.path.as_str(), message);
        self.sink.found.borrow_mut().push(found);
    }

    pub(crate) fn text(self) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => {
                let bare = self.node.to_json();
                self.want(format_args!("a text; put it in quotes: \"{bare}\""))
            }
            _ => self.want("a text"),
        }
    }

    /// A text that is not empty.
    pub(crate) fn some_text(self) -> Option<String> {
        self.checked(|text| if text.is_empty() { Err("is empty") } else { Ok(text.to_owned()) })
    }

    /// A text that `parse` takes, or its message after the text.
    pub(crate) fn checked<T, E: Display>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.clone().text()?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(format!("{} {error}", self.node.describe()));
                None
            }
        }
    }

    pub(crate) fn bool(self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.want("true or false"),
        }
    }

    /// `true`, where only that makes sense.
    pub(crate) fn choice_true(self, name: &str) -> Option<bool> {
        match self.node.value {
            Value::Bool(true) => Some(true),
            _ => self.want(format_args!("true; leave `{name}` out otherwise")),
        }
    }

    pub(crate) fn integer<T: TryFrom<u64> + Display + PartialOrd>(
        self,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let number = match &self.node.value {
            Value::Number(number) => number.as_u64().and_then(|number| T::try_from(number).ok()),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => self.want(format_args!("a whole number from {} to {}", range.start(), range.end())),
        }
    }

    /// A signed whole number.
    pub(crate) fn signed(self) -> Option<i64> {
        match &self.node.value {
            Value::Number(number) if number.is_i64() => number.as_i64(),
            _ => self.want("a whole number"),
        }
    }

    /// A share in percent.
    pub(crate) fn percent(self) -> Option<f64> {
        let number = match &self.node.value {
            Value::Number(number) => number.as_f64(),
            _ => None,
        };
        match number {
            Some(percent) if (0.0..=100.0).contains(&percent) => Some(percent),
            _ => self.want("a percentage from 0 to 100, such as 5 or 0.1"),
        }
    }

    pub(crate) fn duration(self, range: RangeInclusive<Duration>) -> Option<DurationText> {
        let Value::Text(text) = &self.node.value else {
            return self.want("a duration such as 250ms, 15s or 5m");
        };
        let Some(duration) = DurationText::parse(text) else {
            return self.want("a duration such as 250ms, 15s or 5m");
        };
        if !range.contains(&duration.0) {
            let (low, high) = (DurationText(*range.start()), DurationText(*range.end()));
            return self.want(format_args!("a duration from {low} to {high}"));
        }
        Some(duration)
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let want = names.join(", ");
        let Value::Text(text) = &self.node.value else { return self.want(format_args!("one of {want}")) };
        if let Some((_, value)) = words.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        let hint = did_you_mean(text, names.into_iter());
        self.want(format_args!("one of {want}{hint}"))
    }

    /// A label, such as a port's or subset's name.
    pub(crate) fn label(self) -> Option<String> {
        self.checked(|text| check_label(text).map(|()| text.to_owned()))
    }

    /// A label that may name a service or a namespace.
    pub(crate) fn name(self) -> Option<String> {
        self.checked(|text| check_name(text).map(|()| text.to_owned()))
    }

    /// A service as written from within `namespace`: `orders` or `orders.shop`.
    pub(crate) fn service(self, namespace: &str) -> Option<ServiceName> {
        self.checked(|text| service_from(namespace, text))
    }

    /// A request path: begins with `/`, has no query.
    pub(crate) fn request_path(self) -> Option<String> {
        self.checked(|text| match text {
            _ if !text.starts_with('/') => Err("does not begin with `/`"),
            _ if text.contains(['?', '#']) => Err("has a query or fragment; want the path only"),
            _ if text.chars().any(|c| c.is_control() || c == ' ') => Err("has a character no path has"),
            _ => Ok(text.to_owned()),
        })
    }

    /// A regular expression that compiles.
    pub(crate) fn regex(self) -> Option<String> {
        self.checked(|text| match Regex::new(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!(
                "is not a regular expression: {}",
                error.lines().last().unwrap_or_default().trim_start_matches("error: ")
            )),
        })
    }

    /// A header name; written in lower case from here on.
    pub(crate) fn header_name(self) -> Option<String> {
        self.checked(header_name)
    }
}

/// The lower-case form of a header name.
pub(crate) fn header_name(text: &str) -> Result<String, &'static str> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    match text {
        "" => Err("is empty, want a header name"),
        _ if text.chars().all(token) => Ok(text.to_ascii_lowercase()),
        _ => Err("is not a header name: letters, digits and - only"),
    }
}

/// A service as written from within `namespace`.
pub(crate) fn service_from(namespace: &str, text: &str) -> Result<ServiceName, NameError> {
    if text.contains('.') { text.parse() } else { ServiceName::new(namespace, text) }
}

/// A map with fields of known names.
pub(crate) struct Object<'a> {
    field: Field<'a>,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
}

impl<'a> Object<'a> {
    /// The field of this name, if it is there; a null counts as absent.
    pub(crate) fn field(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.asked.push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        if entry.value.value == Value::Null {
            return None;
        }
        Some(self.field.item(&entry.value, path::key(&self.field.path, name)))
    }

    /// Whether the field is there. Does not count as asking for it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == name && entry.value.value != Value::Null)
    }

    /// The field, if it is there and can be read.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Field<'a>) -> Option<T>,
    ) -> Option<T> {
        self.field(name).and_then(read)
    }

    /// The field; its absence is a mistake.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Field<'a>) -> Option<T>,
    ) -> Option<T> {
        match self.field(name) {
            Some(field) => read(field),
            None => {
                self.refuse_missing(name);
                None
            }
        }
    }

    /// A list that may be absent.
    pub(crate) fn list<T>(&mut self, name: &'static str, read: impl Fn(Field<'a>) -> Option<T>) -> Vec<T> {
        self.optional(name, |field| field.list(read)).unwrap_or_default()
    }

    /// A duration that may be absent.
    pub(crate) fn duration(
        &mut self,
        name: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<DurationText> {
        self.optional(name, |field| field.duration(range))
    }

    /// Reports a field whose behaviour this version does not have: it is refused, never ignored.
    pub(crate) fn later(&mut self, name: &'static str, what: &str) {
        if let Some(field) = self.field(name) {
            field.refuse(format!("{what} not supported yet; leave `{name}` out"));
        }
    }

    /// Reports a mistake at the map itself.
    pub(crate) fn refuse(&self, message: impl Into<String>) {
        self.field.refuse(message);
    }

    fn refuse_missing(&self, name: &str) {
        let field = self.field.item(self.field.node, path::key(&self.field.path, name));
        field.refuse("is missing");
    }

    /// Of these fields at most one may be there.
    pub(crate) fn at_most_one(&self, names: &[&str]) {
        let there: Vec<&str> = names.iter().copied().filter(|name| self.has(name)).collect();
        if there.len() > 1 {
            self.refuse(format!("has {}; want only one of them", there.join(" and ")));
        }
    }

    /// Exactly one of these fields must be there.
    pub(crate) fn exactly_one(&self, names: &[&str]) {
        self.at_most_one(names);
        if !names.iter().any(|name| self.has(name)) {
            self.refuse(format!("want one of {}", names.join(", ")));
        }
    }

    /// Reports every field that was not asked for.
    pub(crate) fn finish(self) {
        for entry in self.entries {
            if self.asked.contains(&entry.key.as_str()) {
                continue;
            }
            let hint = did_you_mean(&entry.key, self.asked.iter().copied());
            let known =
                if hint.is_empty() { format!("; want one of {}", self.asked.join(", ")) } else { hint };
            let path = path::key(&self.field.path, &entry.key);
            self.field.item(&entry.value, path).refuse_key(entry, format!("unknown field{known}"));
        }
    }
}

/// `; did you mean …?` with the nearest of `known`, or nothing if none is near.
pub(crate) fn did_you_mean<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> String {
    let lower = text.to_ascii_lowercase();
    let nearest = known
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len().max(text.len()) / 3))
        .min();
    match nearest {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}
