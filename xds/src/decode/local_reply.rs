//! What is made of answers of the proxy's own.

use std::mem::take;

use pillion_model::http::{LocalReplies, ReplyFormat, ReplyMapper};
use pillion_model::log_filter::LogFilter;
use pillion_model::tls::DataSource;

use super::Context;
use super::http::substitution;
use super::policy::addition;
use crate::pb;

pub(super) fn local_replies(cx: &mut Context, mut m: pb::hcm::LocalReplyConfig) -> LocalReplies {
    LocalReplies {
        mappers: cx.each("mappers", take(&mut m.mappers), mapper),
        format: cx.some("body_format", m.body_format.take(), format),
    }
}

fn mapper(cx: &mut Context, mut m: pb::hcm::ResponseMapper) -> ReplyMapper {
    let given = m.filter.take();
    if given.is_none() {
        cx.missing("filter");
    }
    let filter = cx.some("filter", given, |cx, given| {
        let filter = super::log_filter::filter(cx, given);
        if filter.is_none() {
            // What only a log does not need decides what a client gets.
            cx.refuse("is not supported, or holds one that is not");
        }
        filter
    });
    let status = m.status_code.take().map(|status| {
        let status = u16::try_from(status.value).ok().filter(|status| (200..600).contains(status));
        status.unwrap_or_else(|| {
            cx.refuse_at("status_code", "want 200 to 599");
            500
        })
    });
    let body = cx.some("body", m.body.take(), |cx, source| match super::tls::data_source(cx, source) {
        DataSource::Inline(body) => body,
        DataSource::File(_) | DataSource::Environment(_) => {
            cx.refuse("is not supported; supported: inline_bytes, inline_string");
            Vec::new()
        }
    });
    let mapper = ReplyMapper {
        filter: filter.flatten().unwrap_or(LogFilter::NotHealthCheck),
        status,
        body,
        format: cx.some("body_format_override", m.body_format_override.take(), format),
        headers: cx.each("headers_to_add", take(&mut m.headers_to_add), addition),
    };
    cx.rest(&m);
    mapper
}

fn format(cx: &mut Context, mut format: pb::core::SubstitutionFormatString) -> ReplyFormat {
    let content_type = take(&mut format.content_type);
    if format.format.is_none() {
        cx.refuse("has no format; want text_format_source or json_format");
    }
    ReplyFormat { format: substitution(cx, format), content_type }
}
