//! What is made of answers of the proxy's own.

use pillion_model::http::{LocalReplies, ReplyFormat, ReplyMapper};
use pillion_model::tls::DataSource;

use super::http::log_format;
use super::route::addition;
use super::{log_filter, number};
use crate::pb;

pub(super) fn local_replies(replies: &LocalReplies) -> pb::hcm::LocalReplyConfig {
    pb::hcm::LocalReplyConfig {
        mappers: replies.mappers.iter().map(mapper).collect(),
        body_format: replies.format.as_ref().map(format),
    }
}

fn mapper(mapper: &ReplyMapper) -> pb::hcm::ResponseMapper {
    let body = mapper.body.as_ref().map(|body| DataSource::Inline(body.clone()));
    pb::hcm::ResponseMapper {
        filter: Some(log_filter::filter(&mapper.filter)),
        status_code: mapper.status.map(|status| number(status.into())),
        body: body.as_ref().map(super::tls::data_source),
        body_format_override: mapper.format.as_ref().map(format),
        // Nothing is ever removed here.
        headers_to_add: mapper.headers.iter().filter_map(|change| addition(change).ok()).collect(),
    }
}

fn format(format: &ReplyFormat) -> pb::core::SubstitutionFormatString {
    pb::core::SubstitutionFormatString {
        format: log_format(&format.format),
        content_type: format.content_type.clone(),
        ..Default::default()
    }
}
