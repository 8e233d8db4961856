//! Request ids (UUIDv4) and W3C trace context.

use http::{HeaderMap, HeaderValue};

use super::names::{REQUEST_ID, TRACEPARENT};
use crate::exchange::Exchange;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Sees to it that the request has an id and a trace context.
pub(crate) fn apply(x: &mut Exchange) {
    let config = &x.hcm.config;
    let headers = &mut x.head.headers;
    let from_outside = config.use_remote_address && !config.preserve_external_request_id;
    if config.generate_request_id && (from_outside || !headers.contains_key(&REQUEST_ID)) {
        headers.insert(&REQUEST_ID, uuid_v4(fastrand::u128(..)));
    }
    if config.always_set_request_id_in_response {
        x.request_id = headers.get(&REQUEST_ID).cloned();
    }
    // Between services of a mesh traces go on; a proxy on its own leaves them alone, as Envoy does
    // without tracing.
    if !x.connection.worker.own_service_name.is_empty() {
        continue_trace(headers, || fastrand::u128(..));
    }
}

/// A UUIDv4 from 128 random bits.
pub(crate) fn uuid_v4(random: u128) -> HeaderValue {
    let random = (random & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let bytes = random.to_be_bytes();
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    unique(&text)
}

/// No other request has this value: peers over HTTP/2 need not keep it (RFC 7541 section 6.2.3), which
/// would push out what they see again.
fn unique(text: &[u8]) -> HeaderValue {
    let mut value = HeaderValue::from_bytes(text).expect("hexadecimal digits and dashes");
    value.set_sensitive(true);
    value
}

/// Continues the trace in `headers` with a new parent id, or starts one that is not sampled.
///
/// A `traceparent` that is not valid is replaced (Trace Context section 3.2.2.5), and its
/// `tracestate` removed.
pub(crate) fn continue_trace(headers: &mut HeaderMap, random: impl Fn() -> u128) {
    let span = hex_of::<16>(nonzero(random()));
    let mut text = [b'-'; 55];
    let mut carried = None;
    if let Some(value) = headers.get(&TRACEPARENT) {
        carried = parse_traceparent(value.as_bytes());
    }
    match carried {
        Some((trace, flags)) => {
            text[3..35].copy_from_slice(&trace);
            text[53..].copy_from_slice(&flags);
        }
        None => {
            headers.remove("tracestate");
            text[3..35].copy_from_slice(&hex_of::<32>(nonzero(random())));
            text[53..].copy_from_slice(b"00");
        }
    }
    text[..2].copy_from_slice(b"00");
    text[36..52].copy_from_slice(&span);
    headers.insert(&TRACEPARENT, unique(&text));
}

fn nonzero(random: u128) -> u128 {
    // Both halves, as the span id takes the lower one.
    random | 1 | (1 << 64)
}

/// The trace id and flags of a valid version 00 (or later) `traceparent`.
fn parse_traceparent(value: &[u8]) -> Option<([u8; 32], [u8; 2])> {
    let ok = value.len() >= 55
        && value[2] == b'-'
        && value[35] == b'-'
        && value[52] == b'-'
        && &value[..2] != b"ff"
        && (value.len() == 55 || (&value[..2] != b"00" && value[55] == b'-'))
        && [&value[..2], &value[3..35], &value[36..52], &value[53..55]]
            .iter()
            .all(|part| part.iter().all(|byte| HEX.contains(byte)))
        && value[3..35].iter().any(|byte| *byte != b'0')
        && value[36..52].iter().any(|byte| *byte != b'0');
    if !ok {
        return None;
    }
    Some((value[3..35].try_into().ok()?, value[53..55].try_into().ok()?))
}

fn hex_of<const N: usize>(value: u128) -> [u8; N] {
    let mut out = [b'0'; N];
    let mut value = value;
    for digit in out.iter_mut().rev() {
        *digit = HEX[usize::try_from(value & 15).unwrap_or(0)];
        value >>= 4;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_version_four_and_the_variant() {
        assert_eq!(uuid_v4(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_v4(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_trace_goes_on_with_a_new_parent() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (incoming, trace, flags) in [
            (Some(format!("00-{trace}-00f067aa0ba902b7-01")), Some(trace), "01"),
            (Some(format!("cc-{trace}-00f067aa0ba902b7-01-more")), Some(trace), "01"),
            (Some(format!("00-{trace}-0000000000000000-01")), None, "00"),
            (Some("rubbish".to_owned()), None, "00"),
            (None, None, "00"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("tracestate", HeaderValue::from_static("v=1"));
            if let Some(text) = &incoming {
                headers.insert(&TRACEPARENT, text.parse().unwrap());
            }
            continue_trace(&mut headers, || 0x1234_5678_9abc_def0_1122_3344_5566_7788);
            let text = headers[&TRACEPARENT].to_str().unwrap().to_owned();
            let want = trace.unwrap_or("123456789abcdef11122334455667789");
            assert_eq!(text, format!("00-{want}-1122334455667789-{flags}"), "{incoming:?}");
            assert_eq!(headers.contains_key("tracestate"), trace.is_some(), "{incoming:?}");
        }
    }
}
