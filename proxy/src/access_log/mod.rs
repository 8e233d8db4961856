//! Access logs: a line per request or connection, formatted as Envoy does, written by one thread.
//!
//! The request path never waits for a disk or a pipe: lines that do not fit the queue are dropped
//! and counted.

mod logged;
mod writer;

use std::sync::Arc;

use http::HeaderName;
use pillion_model::http::{AccessLog, LogFormat};
use pillion_model::log_filter::LogFilter;

pub(crate) use writer::{Sink, Writers};

use crate::headers::format::{Context, Format, Value};
use crate::headers::names::GRPC_STATUS;

/// One compiled access log.
#[derive(Debug)]
pub(crate) struct AccessLogger {
    line: Line,
    filter: Option<LogFilter>,
    sink: Sink,
}

/// What a line looks like, compiled.
#[derive(Debug)]
pub(crate) enum Line {
    Text(Format),
    Json(Vec<(String, Format)>),
}

/// Envoy's default line.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
     %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
     %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
     \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

impl AccessLogger {
    /// Compiles all of `logs`.
    ///
    /// # Errors
    ///
    /// Which log's format or file is wrong, and why.
    pub(crate) fn compile_all(logs: &[AccessLog], writers: &Writers) -> Result<Vec<Arc<Self>>, String> {
        logs.iter()
            .map(|log| {
                let at = |reason: String| format!("access log `{}`: {reason}", log.path);
                let line = Line::compile(&log.format).map_err(at)?;
                let sink = writers.sink(&log.path).map_err(|error| at(error.to_string()))?;
                Ok(Arc::new(Self { line, filter: log.filter.clone(), sink }))
            })
            .collect()
    }

    /// Formats and hands over a line, if there is to be one.
    pub(crate) fn write(&self, context: &Context<'_>) {
        if self.filter.as_ref().is_none_or(|filter| filter.takes(context)) {
            self.sink.write(self.line.text(context));
        }
    }

    /// Request headers that the line shows or the filter looks at.
    pub(crate) fn request_headers(&self) -> Vec<HeaderName> {
        let mut names = self.line.request_headers();
        names.extend(self.filter.as_ref().map(headers_of).unwrap_or_default());
        names
    }

    /// Response headers that the line shows, or may be looked at.
    pub(crate) fn response_headers(&self) -> Vec<HeaderName> {
        let shown = self.line.formats().flat_map(Format::response_headers).cloned();
        shown.chain(self.filter.as_ref().map(|_| GRPC_STATUS.clone())).collect()
    }
}

/// Headers of requests that a filter looks at.
pub(crate) fn headers_of(filter: &LogFilter) -> Vec<HeaderName> {
    let mut names = Vec::new();
    filter.headers(&mut |name| names.extend(HeaderName::from_bytes(name.as_bytes())));
    names
}

impl Line {
    /// Compiles `format`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn compile(format: &LogFormat) -> Result<Self, String> {
        Ok(match format {
            LogFormat::Text(text) => Self::Text(Format::compile(text.as_deref().unwrap_or(DEFAULT_FORMAT))?),
            LogFormat::Json(fields) => Self::Json(
                fields
                    .iter()
                    .map(|(key, format)| Ok((key.clone(), Format::compile(format)?)))
                    .collect::<Result<_, String>>()?,
            ),
        })
    }

    /// The line.
    pub(crate) fn text(&self, context: &Context<'_>) -> String {
        let mut line = String::with_capacity(256);
        match self {
            Self::Text(format) => format.write(context, "-", &mut line),
            Self::Json(fields) => write_json(fields, context, &mut line),
        }
        line
    }

    /// Request headers it shows.
    pub(crate) fn request_headers(&self) -> Vec<HeaderName> {
        self.formats().flat_map(Format::request_headers).cloned().collect()
    }

    fn formats(&self) -> impl Iterator<Item = &Format> {
        let (text, json) = match self {
            Self::Text(format) => (Some(format), [].as_slice()),
            Self::Json(fields) => (None, fields.as_slice()),
        };
        text.into_iter().chain(json.iter().map(|(_, format)| format))
    }
}

fn write_json(fields: &[(String, Format)], context: &Context<'_>, line: &mut String) {
    let mut object = serde_json::Map::with_capacity(fields.len());
    for (key, format) in fields {
        let value = match format.value(context) {
            Value::Absent => serde_json::Value::Null,
            Value::Number(number) => number.into(),
            Value::Text(text) => text.into_owned().into(),
        };
        object.insert(key.clone(), value);
    }
    line.push_str(&serde_json::Value::Object(object).to_string());
    line.push('\n');
}
