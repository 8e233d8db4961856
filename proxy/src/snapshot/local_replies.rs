//! What a connection manager makes of answers of our own, compiled.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pillion_model::http::{self as model, LogFormat};
use pillion_model::log_filter::LogFilter;
use pillion_model::route::HeaderChanges;

use crate::access_log::{Line, headers_of};
use crate::headers::changes::Changes;
use crate::headers::format::Context;
use crate::local_reply::LocalReply;
use crate::record::Record;

/// Compiled [`model::LocalReplies`].
pub(crate) struct LocalReplies {
    mappers: Vec<Mapper>,
    format: Option<Body>,
}

struct Mapper {
    filter: LogFilter,
    status: Option<StatusCode>,
    body: Option<Bytes>,
    format: Option<Body>,
    changes: Changes,
}

struct Body {
    line: Line,
    content_type: HeaderValue,
}

impl LocalReplies {
    /// Compiles `config`.
    ///
    /// # Errors
    ///
    /// Which format or header is wrong, and why.
    pub(super) fn compile(config: &model::LocalReplies) -> Result<Self, String> {
        let at = |reason: String| format!("local_reply_config: {reason}");
        let mappers = config.mappers.iter().map(Mapper::compile).collect::<Result<_, _>>().map_err(at)?;
        Ok(Self { mappers, format: config.format.as_ref().map(Body::compile).transpose().map_err(at)? })
    }

    /// Request headers that are looked at.
    pub(super) fn request_headers(&self) -> Vec<HeaderName> {
        let formats = self.mappers.iter().filter_map(|mapper| mapper.format.as_ref()).chain(&self.format);
        let mut names: Vec<HeaderName> = formats.flat_map(|body| body.line.request_headers()).collect();
        for mapper in &self.mappers {
            names.extend(headers_of(&mapper.filter));
            names.extend(mapper.changes.request_headers().cloned());
        }
        names
    }

    /// Changes an answer, as Envoy's `rewrite` does: the first mapper that takes it, then the format.
    pub(crate) fn rewrite(&self, reply: &mut LocalReply, record: &mut Record) {
        record.status = reply.status.as_u16();
        let mut headers: HeaderMap = reply.headers.drain(..).collect();
        let (text, kind) = (reply.body.clone(), headers.get(CONTENT_TYPE).cloned());
        let mapper = self.mappers.iter().find(|mapper| mapper.filter.takes(&context(record, &headers)));
        if let Some(mapper) = mapper {
            mapper.apply(reply, &mut headers, record);
        }
        let mut content_type = HeaderValue::from_static("text/plain");
        if let Some(body) = mapper.and_then(|mapper| mapper.format.as_ref()).or(self.format.as_ref()) {
            record.local_reply = Some(reply.body.clone());
            reply.body = body.line.text(&context(record, &headers)).into();
            record.local_reply = None;
            content_type = body.content_type.clone();
        }
        if reply.body.is_empty() {
            headers.remove(CONTENT_TYPE);
        } else if headers.get(CONTENT_TYPE) == kind.as_ref() && (kind.is_none() || reply.body != text) {
            headers.insert(CONTENT_TYPE, content_type);
        }
        reply.set_headers(headers);
    }
}

fn context<'a>(record: &'a Record, response: &'a HeaderMap) -> Context<'a> {
    Context { record, request: &record.request_headers, response: Some(response), trailers: None }
}

impl Mapper {
    fn compile(config: &model::ReplyMapper) -> Result<Self, String> {
        let changes = HeaderChanges { request: Vec::new(), response: config.headers.clone() };
        let status = config.status.map(|status| {
            StatusCode::from_u16(status).map_err(|_| format!("status {status}: want 200 to 599"))
        });
        Ok(Self {
            filter: config.filter.clone(),
            status: status.transpose()?,
            body: config.body.clone().map(Bytes::from),
            format: config.format.as_ref().map(Body::compile).transpose()?,
            changes: Changes::in_order(&changes)?,
        })
    }

    fn apply(&self, reply: &mut LocalReply, headers: &mut HeaderMap, record: &mut Record) {
        if let Some(body) = &self.body {
            reply.body = body.clone();
        }
        self.changes.response(headers, &record.request_headers, record);
        if let Some(status) = self.status {
            reply.status = status;
            record.status = status.as_u16();
        }
    }
}

impl Body {
    fn compile(config: &model::ReplyFormat) -> Result<Self, String> {
        let standard = match config.format {
            LogFormat::Text(_) => "text/plain",
            LogFormat::Json(_) => "application/json",
        };
        let content_type = if config.content_type.is_empty() { standard } else { &config.content_type };
        Ok(Self {
            line: Line::compile(&config.format)?,
            content_type: HeaderValue::from_str(content_type)
                .map_err(|_| format!("content type `{content_type}` is not a header value"))?,
        })
    }
}
