//! `x-forwarded-*`: who the client is, and what clients outside may not say.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use pillion_model::http::HttpConnectionManager;
use pillion_model::matcher::cidr_contains;

use super::names;
use crate::exchange::Exchange;

/// Removed at the edge: from requests of clients that are neither internal nor proxies.
static EDGE_ONLY: [&http::HeaderName; 3] =
    [&names::DECORATOR_OPERATION, &names::DOWNSTREAM_CLUSTER, &names::DOWNSTREAM_NODE];

/// Headers that only internal clients may set.
static INTERNAL_ONLY: [&http::HeaderName; 12] = [
    &names::RETRIABLE_CODES,
    &names::RETRY_ON,
    &names::RETRY_GRPC_ON,
    &names::MAX_RETRIES,
    &names::ALT_STAT_NAME,
    &names::TIMEOUT_MS,
    &names::PER_TRY_TIMEOUT_MS,
    &names::TIMEOUT_ALT_RESPONSE,
    &names::EXPECTED_TIMEOUT_MS,
    &names::FORCE_TRACE,
    &names::IP_TAGS,
    &names::HEDGE_ON_TIMEOUT,
];

/// Finds the client's address, and sets or appends the headers.
pub(crate) fn apply(x: &mut Exchange) {
    let config = &x.hcm.config;
    let headers = &mut x.head.headers;
    let peer = x.connection.remote;
    let kinds = names::Kinds::of(headers);
    if kinds.envoy {
        headers.remove(&names::INTERNAL);
    }
    if kinds.pillion {
        headers.remove(&names::LOCAL_REPLY);
    }
    let hops = config.xff_trusted_hops as usize;
    x.record.remote = if config.use_remote_address && hops == 0 {
        peer
    } else {
        // With `use_remote_address` the nearest hop is the peer itself, not in the header yet.
        let from_right = if config.use_remote_address { hops - 1 } else { hops };
        let client = if kinds.forwarded { client_address(headers, from_right) } else { None };
        client.map_or(peer, |address| SocketAddr::new(address, 0))
    };
    let internal = is_internal(config, headers, x.record.remote.ip());
    if internal {
        headers.insert(&names::INTERNAL, HeaderValue::from_static("true"));
    } else if kinds.envoy {
        INTERNAL_ONLY.iter().for_each(|name| drop(headers.remove(*name)));
        if config.use_remote_address {
            EDGE_ONLY.iter().for_each(|name| drop(headers.remove(*name)));
        }
    }
    if config.use_remote_address {
        let client = x.record.remote.ip().to_string();
        if !internal && let Ok(client) = HeaderValue::try_from(client) {
            headers.insert(&names::EXTERNAL_ADDRESS, client);
        }
        if !config.skip_xff_append {
            append_forwarded_for(headers, peer.ip());
        }
    }
    let own = if x.connection.tls.is_some() { "https" } else { "http" };
    let known = if kinds.forwarded { headers.get(&names::FORWARDED_PROTO) } else { None };
    x.head.scheme = match known.filter(|_| !config.use_remote_address || hops > 0) {
        Some(known) if known.as_bytes().eq_ignore_ascii_case(b"https") => "https",
        Some(_) => "http",
        None => {
            headers.insert(&names::FORWARDED_PROTO, HeaderValue::from_static(own));
            own
        }
    };
    x.record.scheme = x.head.scheme;
}

/// Whether the client at `address` is one of ours: in a range that is, and with no proxy between.
fn is_internal(config: &HttpConnectionManager, headers: &HeaderMap, address: IpAddr) -> bool {
    if config.internal_addresses.is_empty() {
        return false;
    }
    let hops: usize = headers
        .get_all(&names::FORWARDED_FOR)
        .iter()
        .map(|value| value.as_bytes().split(|byte| *byte == b',').count())
        .sum();
    let alone = hops == usize::from(!config.use_remote_address);
    alone && config.internal_addresses.iter().any(|range| cidr_contains(range, address))
}

/// The address `from_right` places from the right; `None` if there is none or it is not valid.
fn client_address(headers: &HeaderMap, from_right: usize) -> Option<IpAddr> {
    let values: Vec<&[u8]> = headers
        .get_all(&names::FORWARDED_FOR)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .collect();
    let at = values.len().checked_sub(from_right + 1)?;
    std::str::from_utf8(values[at].trim_ascii()).ok()?.parse().ok()
}

fn append_forwarded_for(headers: &mut HeaderMap, address: IpAddr) {
    let mut text = String::new();
    for value in headers.get_all(&names::FORWARDED_FOR) {
        text.push_str(&String::from_utf8_lossy(value.as_bytes()));
        text.push(',');
    }
    text.push_str(&address.to_string());
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(&names::FORWARDED_FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&names::FORWARDED_FOR, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_client_stands_behind_the_trusted_hops() {
        for (values, from_right, want) in [
            (&["1.1.1.1, 2.2.2.2", "3.3.3.3"][..], 0, Some("3.3.3.3")),
            (&["1.1.1.1, 2.2.2.2", "3.3.3.3"], 2, Some("1.1.1.1")),
            (&["1.1.1.1"], 1, None),
            (&["rubbish"], 0, None),
            (&[], 0, None),
        ] {
            let want = want.map(|text| text.parse().unwrap());
            assert_eq!(client_address(&with(values), from_right), want, "{values:?} {from_right}");
        }
    }

    #[test]
    fn addresses_are_appended_to_one_header() {
        let mut headers = with(&["1.1.1.1", "2.2.2.2"]);
        append_forwarded_for(&mut headers, "::1".parse().unwrap());
        assert_eq!(headers[&names::FORWARDED_FOR], "1.1.1.1,2.2.2.2,::1");
        assert_eq!(headers.len(), 1);
    }
}
