//! Matchers.

use std::net::IpAddr;

use pillion_model::matcher::{
    Cidr, HeaderMatcher, HeaderValueMatch, Pattern, QueryMatcher, Regex, StringMatcher,
};
use pillion_model::metadata::{MetadataMatcher, ValueMatcher};

use super::Context;
use super::context::ignored;
use crate::pb;
use pb::route::header_matcher::HeaderMatchSpecifier;
use pb::route::query_parameter_matcher::QueryParameterMatchSpecifier;

/// The expression, which has to match whole texts.
pub(super) fn regex(cx: &mut Context, matcher: pb::matcher::RegexMatcher) -> Regex {
    let source = pattern(cx, matcher);
    Regex::new(&source).unwrap_or_else(|error| {
        cx.refuse_at("regex", error);
        never()
    })
}

/// The expression as written.
pub(super) fn pattern(cx: &mut Context, mut matcher: pb::matcher::RegexMatcher) -> String {
    // The only engine there is, and its limit belongs to the runtime.
    matcher.engine_type = None;
    let regex = std::mem::take(&mut matcher.regex);
    if regex.is_empty() {
        cx.missing("regex");
    }
    cx.rest(&matcher);
    regex
}

/// What stands in for an expression that was refused.
fn never() -> Regex {
    Regex::new("refused").expect("a valid expression")
}

/// What stands in for a matcher that was refused.
fn nothing() -> StringMatcher {
    StringMatcher { pattern: Pattern::Regex(never()), ignore_case: false }
}

pub(super) fn string(cx: &mut Context, matcher: pb::matcher::StringMatcher) -> StringMatcher {
    use pb::matcher::string_matcher::MatchPattern as P;
    let pattern = match matcher.match_pattern {
        Some(P::Exact(text)) => Pattern::Exact(text),
        Some(P::Prefix(text)) => Pattern::Prefix(not_empty(cx, "prefix", text)),
        Some(P::Suffix(text)) => Pattern::Suffix(not_empty(cx, "suffix", text)),
        Some(P::Contains(text)) => Pattern::Contains(not_empty(cx, "contains", text)),
        Some(P::SafeRegex(expression)) => Pattern::Regex(cx.at("safe_regex", |cx| regex(cx, expression))),
        Some(P::Custom(_)) => {
            cx.refuse_at(
                "custom",
                "is not supported; supported: exact, prefix, suffix, contains, safe_regex",
            );
            return nothing();
        }
        None => {
            cx.refuse("has no pattern; want one of exact, prefix, suffix, contains, safe_regex");
            return nothing();
        }
    };
    StringMatcher { pattern, ignore_case: matcher.ignore_case }
}

fn not_empty(cx: &mut Context, field: &str, text: String) -> String {
    if text.is_empty() {
        cx.refuse_at(field, "is empty; want at least one character");
    }
    text
}

pub(super) fn path(cx: &mut Context, matcher: pb::matcher::PathMatcher) -> StringMatcher {
    match matcher.rule {
        Some(pb::matcher::path_matcher::Rule::Path(matcher)) => cx.at("path", |cx| string(cx, matcher)),
        None => {
            cx.missing("path");
            nothing()
        }
    }
}

pub(super) fn header(cx: &mut Context, matcher: pb::route::HeaderMatcher) -> HeaderMatcher {
    use HeaderMatchSpecifier as M;
    if matcher.name.is_empty() {
        cx.missing("name");
    }
    let text = |pattern| HeaderValueMatch::Text(StringMatcher { pattern, ignore_case: false });
    let value = match matcher.header_match_specifier {
        None => HeaderValueMatch::Present(true),
        Some(M::PresentMatch(present)) => HeaderValueMatch::Present(present),
        Some(M::StringMatch(matcher)) => {
            HeaderValueMatch::Text(cx.at("string_match", |cx| string(cx, matcher)))
        }
        Some(M::RangeMatch(range)) => HeaderValueMatch::Range { start: range.start, end: range.end },
        Some(M::ExactMatch(exact)) => text(Pattern::Exact(exact)),
        Some(M::PrefixMatch(prefix)) => text(Pattern::Prefix(not_empty(cx, "prefix_match", prefix))),
        Some(M::SuffixMatch(suffix)) => text(Pattern::Suffix(not_empty(cx, "suffix_match", suffix))),
        Some(M::ContainsMatch(part)) => text(Pattern::Contains(not_empty(cx, "contains_match", part))),
        Some(M::SafeRegexMatch(expression)) => {
            text(Pattern::Regex(cx.at("safe_regex_match", |cx| regex(cx, expression))))
        }
    };
    HeaderMatcher {
        name: matcher.name.to_ascii_lowercase(),
        value,
        invert: matcher.invert_match,
        treat_missing_as_empty: matcher.treat_missing_header_as_empty,
    }
}

pub(super) fn query(cx: &mut Context, matcher: pb::route::QueryParameterMatcher) -> QueryMatcher {
    use QueryParameterMatchSpecifier as M;
    if matcher.name.is_empty() {
        cx.missing("name");
    }
    let value = match matcher.query_parameter_match_specifier {
        None | Some(M::PresentMatch(true)) => None,
        Some(M::PresentMatch(false)) => {
            cx.refuse_at("present_match", "false is not supported; only presence can be asked for");
            None
        }
        Some(M::StringMatch(matcher)) => Some(cx.at("string_match", |cx| string(cx, matcher))),
    };
    QueryMatcher { name: matcher.name, value }
}

pub(super) fn cidr(cx: &mut Context, range: pb::core::CidrRange) -> Cidr {
    let unspecified = IpAddr::from([0, 0, 0, 0]);
    let address = range.address_prefix.parse().unwrap_or_else(|_| {
        cx.refuse_at("address_prefix", format!("got `{}`, want an IP address", range.address_prefix));
        unspecified
    });
    let length = range.prefix_len.map_or(0, |length| length.value);
    u8::try_from(length).ok().and_then(|length| Cidr::new(address, length).ok()).unwrap_or_else(|| {
        let max = if address.is_ipv4() { 32 } else { 128 };
        cx.refuse_at("prefix_len", format!("got {length}, want 0 to {max}"));
        Cidr::from(address)
    })
}

pub(super) fn metadata(cx: &mut Context, m: pb::matcher::MetadataMatcher) -> MetadataMatcher {
    use pb::matcher::metadata_matcher::path_segment::Segment;
    if m.filter.is_empty() {
        cx.missing("filter");
    }
    if m.path.is_empty() {
        cx.missing("path");
    }
    let path = cx.each("path", m.path, |cx, segment| match segment.segment {
        Some(Segment::Key(key)) if !key.is_empty() => key,
        _ => {
            cx.missing("key");
            String::new()
        }
    });
    let value = match m.value {
        Some(value) => cx.at("value", |cx| metadata_value(cx, value, 0)),
        None => {
            cx.missing("value");
            ValueMatcher::Null
        }
    };
    MetadataMatcher { filter: m.filter, path, value, invert: m.invert }
}

fn metadata_value(cx: &mut Context, m: pb::matcher::ValueMatcher, depth: usize) -> ValueMatcher {
    use pb::matcher::double_matcher::MatchPattern as D;
    use pb::matcher::list_matcher::MatchPattern as L;
    use pb::matcher::value_matcher::MatchPattern as P;
    if depth > VALUE_DEPTH_MAX {
        cx.refuse(format!("is nested more than {VALUE_DEPTH_MAX} deep"));
        return ValueMatcher::Null;
    }
    match m.match_pattern {
        Some(P::NullMatch(_)) => ValueMatcher::Null,
        Some(P::DoubleMatch(number)) => match number.match_pattern {
            Some(D::Exact(number)) => ValueMatcher::Number(number),
            Some(D::Range(range)) => ValueMatcher::Range { start: range.start, end: range.end },
            None => {
                cx.refuse_at("double_match", "says nothing; want exact or range");
                ValueMatcher::Null
            }
        },
        Some(P::StringMatch(matcher)) => ValueMatcher::Text(cx.at("string_match", |cx| string(cx, matcher))),
        Some(P::BoolMatch(on)) => ValueMatcher::Bool(on),
        Some(P::PresentMatch(present)) => ValueMatcher::Present(present),
        Some(P::ListMatch(list)) => match list.match_pattern {
            Some(L::OneOf(one)) => ValueMatcher::List(Box::new(
                cx.at("list_match.one_of", |cx| metadata_value(cx, *one, depth + 1)),
            )),
            None => {
                cx.refuse_at("list_match", "says nothing; want one_of");
                ValueMatcher::Null
            }
        },
        Some(P::OrMatch(any)) => ValueMatcher::Or(cx.at("or_match", |cx| {
            cx.each("value_matchers", any.value_matchers, |cx, one| metadata_value(cx, one, depth + 1))
        })),
        None => {
            cx.refuse("says nothing; want null_match, double_match, string_match, bool_match, present_match, list_match or or_match");
            ValueMatcher::Null
        }
    }
}

/// Values inside values.
const VALUE_DEPTH_MAX: usize = 16;

/// Metadata: ours, and the names of what else there is, which nothing here reads.
pub(super) fn our_metadata(cx: &mut Context, metadata: Option<pb::core::Metadata>) -> pb::Struct {
    let Some(mut metadata) = metadata else { return pb::Struct::default() };
    let ours = metadata.filter_metadata.remove(pb::METADATA).unwrap_or_default();
    cx.at("metadata", |cx| ignored!(cx, metadata, filter_metadata, typed_filter_metadata));
    ours
}

/// Whether a switch of ours is on.
pub(super) fn flag(ours: &pb::Struct, name: &str) -> bool {
    matches!(ours.fields.get(name), Some(pb::Value { kind: Some(pb::Kind::BoolValue(true)) }))
}

/// A text of a struct.
pub(super) fn text<'a>(fields: &'a pb::Struct, name: &str) -> Option<&'a str> {
    match fields.fields.get(name) {
        Some(pb::Value { kind: Some(pb::Kind::StringValue(text)) }) => Some(text),
        _ => None,
    }
}
