//! Limits of a proxy itself: buckets of tokens, and what routes say of requests so that the right
//! bucket is found.

use std::time::Duration;

use crate::endpoint::Fraction;
use crate::matcher::{Cidr, HeaderMatcher, QueryMatcher};
use crate::route::HeaderChange;

/// Limits how many requests this proxy lets through, all workers together. Envoy: `LocalRateLimit`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalRateLimit {
    /// Prefix of statistics.
    pub stat_prefix: String,
    /// Answer to what is too much. Default 429.
    pub status: u16,
    /// How much is allowed; `None`: only routes say it.
    pub bucket: Option<TokenBucket>,
    /// Requests with limits of their own.
    pub descriptors: Vec<DescriptorLimit>,
    /// A request with a limit of its own also takes a token from `bucket`. Default true.
    pub always_take_default: bool,
    /// How many values have a bucket at once where a descriptor has one for each. Default 20.
    pub dynamic_max: u32,
    /// Describes requests, instead of what routes and virtual hosts say.
    pub actions: Vec<RateLimitActions>,
    /// Which of the routes' descriptions apply, 0 to 10.
    pub stage: u32,
    /// Whether those of a virtual host apply.
    pub host_actions: HostActions,
    /// Share of requests that is counted. Default none.
    pub enabled: Fraction,
    /// Share of what is too much that is refused. Default none.
    pub enforced: Fraction,
    /// Header changes of requests that are too many and sent on.
    pub request_headers: Vec<HeaderChange>,
    /// Header changes of refusals.
    pub response_headers: Vec<HeaderChange>,
    /// `x-ratelimit-limit`, `-remaining` and `-reset` on every answer.
    pub limit_headers: bool,
    /// `retry-after` on refusals with status 429.
    pub retry_after: bool,
    /// gRPC clients are told RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
}

impl Default for LocalRateLimit {
    /// Envoy's defaults: nothing is counted.
    fn default() -> Self {
        let never = Fraction { numerator: 0, denominator: 100 };
        Self {
            stat_prefix: String::new(),
            status: 429,
            bucket: None,
            descriptors: Vec::new(),
            always_take_default: true,
            dynamic_max: DYNAMIC_MAX,
            actions: Vec::new(),
            stage: 0,
            host_actions: HostActions::default(),
            enabled: never,
            enforced: never,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            limit_headers: false,
            retry_after: false,
            resource_exhausted: false,
        }
    }
}

/// The default of [`LocalRateLimit::dynamic_max`].
pub const DYNAMIC_MAX: u32 = 20;

/// The highest [`LocalRateLimit::stage`].
pub const STAGE_MAX: u32 = 10;

/// Tokens that come back at a steady rate; a request takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// As many as fit, and as there are at first.
    pub max_tokens: u32,
    /// As many come back …
    pub tokens_per_fill: u32,
    /// … in this time; at least 50 ms.
    pub fill_interval: Duration,
}

/// A bucket for the requests of one description. Envoy: `LocalRateLimitDescriptor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// Keys and values, as a request has to have them, in this order. An empty value stands for
    /// any, each with a bucket of its own.
    pub entries: Vec<(String, String)>,
    /// How much is allowed.
    pub bucket: TokenBucket,
    /// What is too much is counted and sent on.
    pub shadow: bool,
}

/// When descriptions of a virtual host apply. Envoy: `VhRateLimitsOptions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostActions {
    /// Where the route has none.
    #[default]
    Override,
    /// Always.
    Include,
    /// Never.
    Ignore,
}

/// Describes a request: keys and values, by one action after the other. Envoy: `RateLimit`.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimitActions {
    /// Which filters read this, 0 to 10.
    pub stage: u32,
    /// At least one. An action that has nothing to say leaves the request undescribed.
    pub actions: Vec<RateLimitAction>,
}

/// One key and value of a description. Envoy: `RateLimit.Action`.
#[derive(Clone, Debug, PartialEq)]
pub enum RateLimitAction {
    /// `source_cluster` and the proxy's own cluster.
    SourceCluster,
    /// `destination_cluster` and where the request goes.
    DestinationCluster,
    /// `key` and the first value of a header.
    Header {
        /// Lower-case name.
        name: String,
        /// The key.
        key: String,
        /// Without the header, what the other actions say is the description.
        skip_if_absent: bool,
    },
    /// `key` and the first value of a query parameter.
    Query {
        /// The parameter.
        name: String,
        /// The key.
        key: String,
        /// As of a header.
        skip_if_absent: bool,
    },
    /// `remote_address` and the client's address.
    RemoteAddress,
    /// `masked_remote_address` and the network that the client is in.
    MaskedRemoteAddress {
        /// Bits of an IPv4 address, up to 32.
        v4_bits: u8,
        /// Bits of an IPv6 address, up to 128.
        v6_bits: u8,
    },
    /// `key` and `value`.
    Generic {
        /// The key. Default `generic_key`.
        key: String,
        /// The value.
        value: String,
    },
    /// `key` and `value` if all headers match.
    HeaderMatch {
        /// The key. Default `header_match`.
        key: String,
        /// The value.
        value: String,
        /// False: if they do not all match.
        expect: bool,
        /// The headers.
        headers: Vec<HeaderMatcher>,
    },
    /// `key` and `value` if all query parameters match.
    QueryMatch {
        /// The key. Default `query_match`.
        key: String,
        /// The value.
        value: String,
        /// False: if they do not all match.
        expect: bool,
        /// The parameters.
        parameters: Vec<QueryMatcher>,
    },
    /// `key` and `value` if the client's address is in one of the ranges.
    RemoteAddressMatch {
        /// The key. Default `remote_address_match`.
        key: String,
        /// The value.
        value: String,
        /// True: if it is in none.
        invert: bool,
        /// The ranges.
        ranges: Vec<Cidr>,
    },
}
