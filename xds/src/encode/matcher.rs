//! Matchers.

use pillion_model::matcher::{
    Cidr, HeaderMatcher, HeaderValueMatch, Pattern, QueryMatcher, Regex, StringMatcher,
};
use pillion_model::metadata::{MetadataMatcher, ValueMatcher};

use crate::pb;
use pb::route::header_matcher::HeaderMatchSpecifier;
use pb::route::query_parameter_matcher::QueryParameterMatchSpecifier;

pub(super) fn regex(regex: &Regex) -> pb::matcher::RegexMatcher {
    pattern(regex.source())
}

pub(super) fn pattern(source: &str) -> pb::matcher::RegexMatcher {
    pb::matcher::RegexMatcher { regex: source.to_owned(), engine_type: None }
}

pub(super) fn string(matcher: &StringMatcher) -> pb::matcher::StringMatcher {
    use pb::matcher::string_matcher::MatchPattern as P;
    let pattern = match &matcher.pattern {
        Pattern::Exact(text) => P::Exact(text.clone()),
        Pattern::Prefix(text) => P::Prefix(text.clone()),
        Pattern::Suffix(text) => P::Suffix(text.clone()),
        Pattern::Contains(text) => P::Contains(text.clone()),
        Pattern::Regex(source) => P::SafeRegex(regex(source)),
    };
    pb::matcher::StringMatcher { ignore_case: matcher.ignore_case, match_pattern: Some(pattern) }
}

pub(super) fn path(matcher: &StringMatcher) -> pb::matcher::PathMatcher {
    pb::matcher::PathMatcher { rule: Some(pb::matcher::path_matcher::Rule::Path(string(matcher))) }
}

pub(super) fn header(matcher: &HeaderMatcher) -> pb::route::HeaderMatcher {
    pb::route::HeaderMatcher {
        name: matcher.name.clone(),
        invert_match: matcher.invert,
        treat_missing_header_as_empty: matcher.treat_missing_as_empty,
        header_match_specifier: Some(match &matcher.value {
            HeaderValueMatch::Present(present) => HeaderMatchSpecifier::PresentMatch(*present),
            HeaderValueMatch::Text(text) => HeaderMatchSpecifier::StringMatch(string(text)),
            HeaderValueMatch::Range { start, end } => {
                HeaderMatchSpecifier::RangeMatch(pb::types::Int64Range { start: *start, end: *end })
            }
        }),
    }
}

pub(super) fn query(matcher: &QueryMatcher) -> pb::route::QueryParameterMatcher {
    pb::route::QueryParameterMatcher {
        name: matcher.name.clone(),
        query_parameter_match_specifier: Some(match &matcher.value {
            None => QueryParameterMatchSpecifier::PresentMatch(true),
            Some(text) => QueryParameterMatchSpecifier::StringMatch(string(text)),
        }),
    }
}

pub(super) fn metadata(matcher: &MetadataMatcher) -> pb::matcher::MetadataMatcher {
    use pb::matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    let segment = |key: &String| PathSegment { segment: Some(Segment::Key(key.clone())) };
    pb::matcher::MetadataMatcher {
        filter: matcher.filter.clone(),
        path: matcher.path.iter().map(segment).collect(),
        value: Some(metadata_value(&matcher.value)),
        invert: matcher.invert,
    }
}

fn metadata_value(matcher: &ValueMatcher) -> pb::matcher::ValueMatcher {
    use pb::matcher::double_matcher::MatchPattern as D;
    use pb::matcher::list_matcher::MatchPattern as L;
    use pb::matcher::value_matcher::{MatchPattern as P, NullMatch};
    let number = |pattern| P::DoubleMatch(pb::matcher::DoubleMatcher { match_pattern: Some(pattern) });
    let pattern = match matcher {
        ValueMatcher::Null => P::NullMatch(NullMatch {}),
        ValueMatcher::Number(value) => number(D::Exact(*value)),
        ValueMatcher::Range { start, end } => {
            number(D::Range(pb::types::DoubleRange { start: *start, end: *end }))
        }
        ValueMatcher::Text(text) => P::StringMatch(string(text)),
        ValueMatcher::Bool(on) => P::BoolMatch(*on),
        ValueMatcher::Present(present) => P::PresentMatch(*present),
        ValueMatcher::List(one) => P::ListMatch(Box::new(pb::matcher::ListMatcher {
            match_pattern: Some(L::OneOf(Box::new(metadata_value(one)))),
        })),
        ValueMatcher::Or(any) => {
            let value_matchers = any.iter().map(metadata_value).collect();
            P::OrMatch(pb::matcher::OrMatcher { value_matchers })
        }
    };
    pb::matcher::ValueMatcher { match_pattern: Some(pattern) }
}

pub(super) fn cidr(range: &Cidr) -> pb::core::CidrRange {
    pb::core::CidrRange {
        address_prefix: range.addr().to_string(),
        prefix_len: Some(super::number(range.prefix_len().into())),
    }
}
