//! Generated models: everything a Pillion proxy can be told, in its normal form.
//!
//! Normal form: header removals stand before additions, access log keys are sorted, names of
//! headers are lower case, a limit of zero is no limit, and what Envoy refuses (empty rule sets,
//! weights that sum up to zero) does not occur.

pub(crate) mod authz;
pub(crate) mod endpoints;
pub(crate) mod filters;
pub(crate) mod http;
pub(crate) mod jwt;
pub(crate) mod listeners;
pub(crate) mod matchers;
pub(crate) mod rate_limit;
pub(crate) mod routes;
pub(crate) mod subsets;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pillion_model::endpoint::Fraction;
use proptest::collection::vec;
use proptest::prelude::*;

/// A few: enough for order and repetition to matter.
pub(crate) fn few<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    vec(of, 0..3)
}

pub(crate) fn some<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    vec(of, 1..3)
}

pub(crate) fn maybe<S: Strategy>(of: S) -> impl Strategy<Value = Option<S::Value>> {
    proptest::option::of(of)
}

pub(crate) fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,6}"
}

/// Any text, not empty.
pub(crate) fn text() -> impl Strategy<Value = String> {
    "\\PC{1,8}"
}

/// Any text, perhaps empty.
pub(crate) fn free() -> impl Strategy<Value = String> {
    "\\PC{0,6}"
}

pub(crate) fn duration() -> impl Strategy<Value = Duration> {
    (0_u64..100_000, 0_u32..1_000_000_000).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

/// More than nothing.
pub(crate) fn time() -> impl Strategy<Value = Duration> {
    duration().prop_map(|time| time + Duration::from_millis(1))
}

pub(crate) fn fraction() -> impl Strategy<Value = Fraction> {
    (0_u32..1000, prop_oneof![Just(100), Just(10_000), Just(1_000_000)])
        .prop_map(|(numerator, denominator)| Fraction { numerator, denominator })
}

pub(crate) fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u16; 8]>().prop_map(IpAddr::from)]
}

pub(crate) fn socket() -> impl Strategy<Value = SocketAddr> {
    (ip(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}
