//! Which requests an access log shows, and which local replies are changed.

use pillion_model::log_filter::{Comparison, ComparisonOperator, LogFilter};

use super::{fraction, matcher::header};
use crate::pb;
use pb::accesslog::access_log_filter::FilterSpecifier as F;

pub(super) fn filter(filter: &LogFilter) -> pb::accesslog::AccessLogFilter {
    let several = |all: &[LogFilter]| all.iter().map(self::filter).collect();
    let filter_specifier = match filter {
        LogFilter::Status(than) => {
            F::StatusCodeFilter(pb::accesslog::StatusCodeFilter { comparison: Some(comparison(*than)) })
        }
        LogFilter::Duration(than) => {
            F::DurationFilter(pb::accesslog::DurationFilter { comparison: Some(comparison(*than)) })
        }
        LogFilter::NotHealthCheck => F::NotHealthCheckFilter(pb::accesslog::NotHealthCheckFilter {}),
        LogFilter::Share(share) => F::RuntimeFilter(pb::accesslog::RuntimeFilter {
            percent_sampled: Some(fraction(*share)),
            ..Default::default()
        }),
        LogFilter::All(all) => F::AndFilter(pb::accesslog::AndFilter { filters: several(all) }),
        LogFilter::Any(any) => F::OrFilter(pb::accesslog::OrFilter { filters: several(any) }),
        LogFilter::Header(matcher) => {
            F::HeaderFilter(pb::accesslog::HeaderFilter { header: Some(header(matcher)) })
        }
        LogFilter::Flags(flags) => {
            F::ResponseFlagFilter(pb::accesslog::ResponseFlagFilter { flags: flags.clone() })
        }
        LogFilter::GrpcStatus { statuses, exclude } => {
            let statuses = statuses.iter().filter_map(|&status| i32::try_from(status).ok()).collect();
            F::GrpcStatusFilter(pb::accesslog::GrpcStatusFilter { statuses, exclude: *exclude })
        }
    };
    pb::accesslog::AccessLogFilter { filter_specifier: Some(filter_specifier) }
}

fn comparison(than: Comparison) -> pb::accesslog::ComparisonFilter {
    use pb::accesslog::comparison_filter::Op;
    let op = match than.operator {
        ComparisonOperator::Equal => Op::Eq,
        ComparisonOperator::AtLeast => Op::Ge,
        ComparisonOperator::AtMost => Op::Le,
        ComparisonOperator::NotEqual => Op::Ne,
    };
    // The key is required; there is no runtime that could have it.
    let value = pb::core::RuntimeUInt32 { default_value: than.value, runtime_key: String::new() };
    pb::accesslog::ComparisonFilter { op: op.into(), value: Some(value) }
}
