//! What routes and filters say of a request, for the limits to find it by.

use std::borrow::Cow;

use pillion_model::matcher::{Cidr, RequestView, cidr_contains};
use pillion_model::rate_limit::{HostActions, LocalRateLimit, RateLimitAction, RateLimitActions};
use pillion_model::route::RouteAction;

use super::descriptors::Entry;
use crate::exchange::{Exchange, Head};
use crate::filters::jwt::percent_decoded;
use crate::snapshot::Routed;

/// What one action says of a request.
enum Said<'a> {
    Entry(Entry<'a>),
    /// Nothing, and the other actions describe it.
    Nothing,
    /// The request is not described.
    NotThis,
}

/// Every description of the request.
pub(super) fn request<'a>(
    x: &'a Exchange,
    settings: &'a LocalRateLimit,
    routed: Option<&'a Routed>,
) -> Vec<Vec<Entry<'a>>> {
    let describe = |rules: &'a [RateLimitActions]| rules.iter().filter_map(|rule| entries(x, &rule.actions));
    if !settings.actions.is_empty() {
        return describe(&settings.actions).collect();
    }
    let Some((host, route)) = routed.map(Routed::model) else { return Vec::new() };
    let RouteAction::Forward(forward) = &route.action else { return Vec::new() };
    let own = forward.rate_limits.iter();
    let with_host = match settings.host_actions {
        _ if forward.include_host_rate_limits => true,
        HostActions::Include => true,
        HostActions::Ignore => false,
        HostActions::Override => forward.rate_limits.is_empty(),
    };
    let host = host.rate_limits.iter().filter(|_| with_host);
    let of_stage = |rule: &&RateLimitActions| rule.stage == settings.stage;
    own.chain(host).filter(of_stage).filter_map(|rule| entries(x, &rule.actions)).collect()
}

fn entries<'a>(x: &'a Exchange, actions: &'a [RateLimitAction]) -> Option<Vec<Entry<'a>>> {
    let mut entries = Vec::with_capacity(actions.len());
    for action in actions {
        match say(x, action) {
            Said::Entry(entry) => entries.push(entry),
            Said::Nothing => {}
            Said::NotThis => return None,
        }
    }
    Some(entries)
}

fn say<'a>(x: &'a Exchange, action: &'a RateLimitAction) -> Said<'a> {
    let remote = x.record.remote.ip();
    let entry = |key: &'a str, value: Cow<'a, str>| Said::Entry((key.into(), value));
    let found = |key, value: Option<Cow<'a, str>>, skip_if_absent: bool| match value {
        Some(value) => entry(key, value),
        None if skip_if_absent => Said::Nothing,
        None => Said::NotThis,
    };
    let when = |holds: bool, key: &'a str, value: &'a str| {
        if holds { entry(key, value.into()) } else { Said::NotThis }
    };
    match action {
        RateLimitAction::SourceCluster => {
            entry("source_cluster", x.connection.worker.shared().node_cluster.as_str().into())
        }
        RateLimitAction::DestinationCluster => {
            found("destination_cluster", x.record.upstream_cluster().map(Cow::from), false)
        }
        RateLimitAction::Header { name, key, skip_if_absent } => {
            found(key, header(&x.head, name), *skip_if_absent)
        }
        RateLimitAction::Query { name, key, skip_if_absent } => {
            found(key, parameter(&x.head, name), *skip_if_absent)
        }
        RateLimitAction::RemoteAddress => entry("remote_address", remote.to_string().into()),
        RateLimitAction::MaskedRemoteAddress { v4_bits, v6_bits } => {
            let bits = if remote.is_ipv4() { *v4_bits } else { *v6_bits };
            let network = Cidr::new(remote, bits).ok().map(|network| network.trunc().to_string().into());
            found("masked_remote_address", network, false)
        }
        RateLimitAction::Generic { key, value } => entry(key, value.into()),
        RateLimitAction::HeaderMatch { key, value, expect, headers } => {
            when(headers.iter().all(|header| header.is_match(&x.head)) == *expect, key, value)
        }
        RateLimitAction::QueryMatch { key, value, expect, parameters } => {
            when(parameters.iter().all(|one| one.is_match(x.head.query())) == *expect, key, value)
        }
        RateLimitAction::RemoteAddressMatch { key, value, invert, ranges } => {
            when(ranges.iter().any(|range| cidr_contains(range, remote)) != *invert, key, value)
        }
    }
}

/// The first value of a header, or a part of the request line.
fn header<'a>(head: &'a Head, name: &str) -> Option<Cow<'a, str>> {
    Some(match name {
        ":authority" | "host" => head.authority().into(),
        ":method" => head.method().into(),
        ":scheme" => head.scheme().into(),
        ":path" => head.uri.path_and_query()?.as_str().into(),
        name => String::from_utf8_lossy(head.headers.get(name)?.as_bytes()),
    })
}

/// The first value of a query parameter.
fn parameter<'a>(head: &'a Head, name: &str) -> Option<Cow<'a, str>> {
    let pairs = head.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.into_iter().find(|(key, _)| *key == name || percent_decoded(key) == name)?;
    Some(if value.contains('%') { percent_decoded(value).into() } else { value.into() })
}
