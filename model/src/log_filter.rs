//! Which requests an access log shows, and which answers of ours are changed. Envoy:
//! `AccessLogFilter`.

use crate::endpoint::Fraction;
use crate::matcher::{HeaderMatcher, RequestView};

/// What has to be so.
#[derive(Clone, Debug, PartialEq)]
pub enum LogFilter {
    /// The status; 0 without an answer.
    Status(Comparison),
    /// How long it took, in milliseconds.
    Duration(Comparison),
    /// It is no health check that the filter `health_check` found.
    NotHealthCheck,
    /// A share of requests, by chance.
    Share(Fraction),
    /// All of these.
    All(Vec<Self>),
    /// One of these.
    Any(Vec<Self>),
    /// A request header.
    Header(HeaderMatcher),
    /// One of these response flags; empty: any flag.
    Flags(Vec<String>),
    /// The gRPC status, or what the HTTP status means in gRPC.
    GrpcStatus {
        /// Numbers.
        statuses: Vec<u32>,
        /// None of them.
        exclude: bool,
    },
}

/// A number against another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// How.
    pub operator: ComparisonOperator,
    /// The other one.
    pub value: u32,
}

/// How numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonOperator {
    /// Is the other one.
    Equal,
    /// At least the other one.
    AtLeast,
    /// At most the other one.
    AtMost,
    /// Is not the other one.
    NotEqual,
}

/// What a filter looks at.
pub trait Logged {
    /// 0 without an answer.
    fn status(&self) -> u16;
    /// Milliseconds since the request came.
    fn duration_ms(&self) -> u64;
    /// The filter `health_check` found a health check.
    fn is_health_check(&self) -> bool;
    /// The request.
    fn request(&self) -> &dyn RequestView;
    /// Whether this response flag is set.
    fn has_flag(&self, flag: &str) -> bool;
    /// Whether any response flag is set.
    fn has_any_flag(&self) -> bool;
    /// The gRPC status, or what the HTTP status means in gRPC.
    fn grpc_status(&self) -> u32;
    /// A random number, uniform over all `u64`.
    fn draw(&self) -> u64;
}

impl LogFilter {
    /// Whether it is so.
    pub fn takes(&self, logged: &dyn Logged) -> bool {
        match self {
            Self::Status(than) => than.holds(logged.status().into()),
            Self::Duration(than) => than.holds(logged.duration_ms()),
            Self::NotHealthCheck => !logged.is_health_check(),
            Self::Share(share) => share.hits(logged.draw()),
            Self::All(all) => all.iter().all(|one| one.takes(logged)),
            Self::Any(any) => any.iter().any(|one| one.takes(logged)),
            Self::Header(matcher) => matcher.is_match(logged.request()),
            Self::Flags(flags) if flags.is_empty() => logged.has_any_flag(),
            Self::Flags(flags) => flags.iter().any(|flag| logged.has_flag(flag)),
            Self::GrpcStatus { statuses, exclude } => statuses.contains(&logged.grpc_status()) != *exclude,
        }
    }

    /// Calls `each` with the name of every header it looks at, those that begin with a colon too.
    pub fn headers<'a>(&'a self, each: &mut dyn FnMut(&'a str)) {
        match self {
            Self::All(several) | Self::Any(several) => several.iter().for_each(|one| one.headers(each)),
            Self::Header(matcher) => each(&matcher.name),
            _ => {}
        }
    }
}

impl Comparison {
    fn holds(self, number: u64) -> bool {
        let value = self.value.into();
        match self.operator {
            ComparisonOperator::Equal => number == value,
            ComparisonOperator::AtLeast => number >= value,
            ComparisonOperator::AtMost => number <= value,
            ComparisonOperator::NotEqual => number != value,
        }
    }
}
