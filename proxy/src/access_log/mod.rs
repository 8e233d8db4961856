//! Access logs: a line per request or connection, formatted as Envoy does, written by one thread.
//!
//! The request path never waits for a disk or a pipe: lines that do not fit the queue are dropped
//! and counted.

mod writer;

use std::sync::Arc;

use http::HeaderName;
use pillion_model::http::{AccessLog, LogFormat};

pub(crate) use writer::{Sink, Writers};

use crate::headers::format::{Context, Format, Value};

/// One compiled access log.
#[derive(Debug)]
pub(crate) struct AccessLogger {
    line: Line,
    sink: Sink,
}

#[derive(Debug)]
enum Line {
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
                let line = match &log.format {
                    LogFormat::Text(text) => {
                        Line::Text(Format::compile(text.as_deref().unwrap_or(DEFAULT_FORMAT)).map_err(at)?)
                    }
                    LogFormat::Json(fields) => Line::Json(
                        fields
                            .iter()
                            .map(|(key, format)| Ok((key.clone(), Format::compile(format)?)))
                            .collect::<Result<_, String>>()
                            .map_err(at)?,
                    ),
                };
                let sink = writers.sink(&log.path).map_err(|error| at(error.to_string()))?;
                Ok(Arc::new(Self { line, sink }))
            })
            .collect()
    }

    /// Formats and hands over a line.
    pub(crate) fn write(&self, context: &Context<'_>) {
        let mut line = String::with_capacity(256);
        match &self.line {
            Line::Text(format) => format.write(context, "-", &mut line),
            Line::Json(fields) => write_json(fields, context, &mut line),
        }
        self.sink.write(line);
    }

    /// Request headers the line shows.
    pub(crate) fn request_headers(&self) -> Vec<HeaderName> {
        self.formats().flat_map(Format::request_headers).cloned().collect()
    }

    /// Response headers the line shows.
    pub(crate) fn response_headers(&self) -> Vec<HeaderName> {
        self.formats().flat_map(Format::response_headers).cloned().collect()
    }

    fn formats(&self) -> impl Iterator<Item = &Format> {
        let (text, json) = match &self.line {
            Line::Text(format) => (Some(format), [].as_slice()),
            Line::Json(fields) => (None, fields.as_slice()),
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
