//! Header additions and removals of routes, compiled when configuration is.

use http::{HeaderMap, HeaderName, HeaderValue};
use pillion_model::route::{Append, HeaderChange, HeaderChanges};

use super::format::{Context, Format};
use crate::record::Record;

/// Compiled [`HeaderChanges`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    request: Vec<Change>,
    response: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Remove(HeaderName),
    Add { name: HeaderName, value: Source, append: Append, keep_empty: bool },
}

#[derive(Clone, Debug)]
enum Source {
    Fixed(HeaderValue),
    Format(Format),
}

impl Changes {
    /// Compiles; removals come first.
    ///
    /// # Errors
    ///
    /// What is wrong with which header.
    pub(crate) fn compile(changes: &HeaderChanges) -> Result<Self, String> {
        Ok(Self { request: compile(&changes.request)?, response: compile(&changes.response)? })
    }

    /// Compiles; changes are made in the order in which they are given.
    ///
    /// # Errors
    ///
    /// As [`Changes::compile`].
    pub(crate) fn in_order(changes: &HeaderChanges) -> Result<Self, String> {
        let all = |changes: &[HeaderChange]| changes.iter().map(Change::compile).collect::<Result<_, _>>();
        Ok(Self { request: all(&changes.request)?, response: all(&changes.response)? })
    }

    /// Changes request headers.
    pub(crate) fn request(&self, headers: &mut HeaderMap, record: &Record) {
        for change in &self.request {
            change.apply(headers, record, None);
        }
    }

    /// Changes response headers; `request` are the request's as far as they were kept.
    pub(crate) fn response(&self, headers: &mut HeaderMap, request: &HeaderMap, record: &Record) {
        for change in &self.response {
            change.apply(headers, record, Some(request));
        }
    }

    /// Request headers that response changes read.
    pub(crate) fn request_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.response.iter().flat_map(|change| {
            let format = match change {
                Change::Add { value: Source::Format(format), .. } => Some(format),
                _ => None,
            };
            format.into_iter().flat_map(Format::request_headers)
        })
    }
}

fn compile(changes: &[HeaderChange]) -> Result<Vec<Change>, String> {
    let (removed, added): (Vec<_>, Vec<_>) =
        changes.iter().partition(|change| matches!(change, HeaderChange::Remove(_)));
    removed.into_iter().chain(added).map(Change::compile).collect()
}

/// Host and pseudo-headers are changed by rewrites only.
fn changeable(name: &str) -> Result<HeaderName, String> {
    let refuse = || format!("header `{name}` cannot be changed here; use a host or path rewrite");
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(refuse());
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name"))
}

impl Change {
    fn compile(change: &HeaderChange) -> Result<Self, String> {
        let (name, value, append, keep_empty) = match change {
            HeaderChange::Remove(name) => return Ok(Self::Remove(changeable(name)?)),
            HeaderChange::Add { name, value, append, keep_empty } => (name, value, *append, *keep_empty),
        };
        let format = Format::compile(value).map_err(|error| format!("header `{name}`: {error}"))?;
        let value = match format.literal() {
            None => Source::Format(format),
            Some(text) => Source::Fixed(
                HeaderValue::from_str(text).map_err(|_| format!("header `{name}`: bad value `{text}`"))?,
            ),
        };
        Ok(Self::Add { name: changeable(name)?, value, append, keep_empty })
    }

    /// Changes `headers`: a response's if `request` is given, else a request's.
    fn apply(&self, headers: &mut HeaderMap, record: &Record, request: Option<&HeaderMap>) {
        match self {
            Self::Remove(name) => {
                headers.remove(name);
            }
            Self::Add { name, value, append, keep_empty } => {
                let value = match value {
                    Source::Fixed(value) => value.clone(),
                    Source::Format(format) => {
                        let mut text = String::new();
                        let response = request.map(|_| &*headers);
                        let request = request.unwrap_or(headers);
                        format.write(&Context { record, request, response, trailers: None }, "", &mut text);
                        match HeaderValue::from_str(&text) {
                            Ok(value) => value,
                            // A value that cannot stand in a header is left out.
                            Err(_) => return,
                        }
                    }
                };
                if value.is_empty() && !keep_empty {
                    return;
                }
                add(headers, name, value, *append);
            }
        }
    }
}

fn add(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, append: Append) {
    match append {
        Append::AppendIfExistsOrAdd => {
            headers.append(name, value);
        }
        Append::AddIfAbsent => {
            headers.entry(name).or_insert(value);
        }
        Append::OverwriteIfExistsOrAdd => {
            headers.insert(name, value);
        }
        Append::OverwriteIfExists => {
            if headers.contains_key(name) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_actions() {
        for (append, had, want) in [
            (Append::AppendIfExistsOrAdd, true, vec!["old", "new"]),
            (Append::AppendIfExistsOrAdd, false, vec!["new"]),
            (Append::AddIfAbsent, true, vec!["old"]),
            (Append::AddIfAbsent, false, vec!["new"]),
            (Append::OverwriteIfExistsOrAdd, true, vec!["new"]),
            (Append::OverwriteIfExists, true, vec!["new"]),
            (Append::OverwriteIfExists, false, vec![]),
        ] {
            let mut headers = HeaderMap::new();
            let name = HeaderName::from_static("x-a");
            if had {
                headers.insert(&name, HeaderValue::from_static("old"));
            }
            add(&mut headers, &name, HeaderValue::from_static("new"), append);
            let got: Vec<_> = headers.get_all(&name).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(got, want, "{append:?} {had}");
        }
    }

    #[test]
    fn host_and_pseudo_headers_are_refused() {
        for name in [":path", "Host"] {
            let changes =
                HeaderChanges { request: vec![HeaderChange::Remove(name.to_owned())], response: Vec::new() };
            let error = Changes::compile(&changes).expect_err(name);
            assert!(error.contains("cannot be changed"), "{error}");
        }
    }
}
