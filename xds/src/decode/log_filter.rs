//! Which requests an access log shows, and which local replies are changed.

use pillion_model::endpoint::Fraction;
use pillion_model::log_filter::{Comparison, ComparisonOperator, LogFilter};

use super::Context;
use super::context::ignored;
use super::matcher::header;
use crate::pb;
use pb::accesslog::access_log_filter::FilterSpecifier as F;

/// `None`: of a kind that is not known here.
pub(super) fn filter(cx: &mut Context, filter: pb::accesslog::AccessLogFilter) -> Option<LogFilter> {
    match filter.filter_specifier {
        Some(F::StatusCodeFilter(by)) => {
            Some(LogFilter::Status(cx.at("status_code_filter", |cx| comparison(cx, by.comparison))))
        }
        Some(F::DurationFilter(by)) => {
            Some(LogFilter::Duration(cx.at("duration_filter", |cx| comparison(cx, by.comparison))))
        }
        Some(F::NotHealthCheckFilter(_)) => Some(LogFilter::NotHealthCheck),
        Some(F::RuntimeFilter(mut by)) => cx.at("runtime_filter", |cx| {
            ignored!(cx, by, runtime_key, use_independent_randomness);
            let share = cx.some("percent_sampled", by.percent_sampled, Context::fraction);
            Some(LogFilter::Share(share.unwrap_or(Fraction { numerator: 0, denominator: 100 })))
        }),
        Some(F::AndFilter(all)) => {
            let filters = cx.each("and_filter.filters", all.filters, self::filter);
            filters.into_iter().collect::<Option<Vec<_>>>().map(LogFilter::All)
        }
        Some(F::OrFilter(any)) => {
            let filters = cx.each("or_filter.filters", any.filters, self::filter);
            filters.into_iter().collect::<Option<Vec<_>>>().map(LogFilter::Any)
        }
        Some(F::HeaderFilter(by)) => cx.at("header_filter", |cx| match by.header {
            Some(matcher) => Some(LogFilter::Header(cx.at("header", |cx| header(cx, matcher)))),
            None => {
                cx.missing("header");
                None
            }
        }),
        Some(F::ResponseFlagFilter(by)) => Some(LogFilter::Flags(by.flags)),
        Some(F::GrpcStatusFilter(by)) => {
            // Envoy's enumeration has gRPC's numbers.
            let statuses = by.statuses.into_iter().filter_map(|status| u32::try_from(status).ok()).collect();
            Some(LogFilter::GrpcStatus { statuses, exclude: by.exclude })
        }
        Some(F::TraceableFilter(_)) => unknown(cx, "traceable_filter"),
        Some(F::MetadataFilter(_)) => unknown(cx, "metadata_filter"),
        Some(F::LogTypeFilter(_)) => unknown(cx, "log_type_filter"),
        Some(F::ExtensionFilter(_)) => unknown(cx, "extension_filter"),
        None => None,
    }
}

fn unknown(cx: &mut Context, field: &str) -> Option<LogFilter> {
    cx.ignore(field);
    None
}

fn comparison(cx: &mut Context, comparison: Option<pb::accesslog::ComparisonFilter>) -> Comparison {
    use pb::accesslog::comparison_filter::Op;
    let comparison = comparison.unwrap_or_default();
    cx.at("comparison", |cx| {
        let operator = match Op::try_from(comparison.op) {
            Ok(Op::Eq) => ComparisonOperator::Equal,
            Ok(Op::Ge) => ComparisonOperator::AtLeast,
            Ok(Op::Le) => ComparisonOperator::AtMost,
            Ok(Op::Ne) => ComparisonOperator::NotEqual,
            Err(_) => {
                cx.refuse_at("op", format!("got {}, want a known value", comparison.op));
                ComparisonOperator::Equal
            }
        };
        let value = match comparison.value {
            Some(mut value) => cx.at("value", |cx| {
                ignored!(cx, value, runtime_key);
                value.default_value
            }),
            None => {
                cx.missing("value");
                0
            }
        };
        Comparison { operator, value }
    })
}
