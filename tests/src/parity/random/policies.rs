//! Random authorization policies.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::requests::{NAMES, QUERIES, SEGMENTS, VALUES, one, path};

/// How deep rules are nested.
const DEPTH: u8 = 3;

/// A virtual host whose only route has policies of its own.
pub(super) fn virtual_host(rng: &mut Rng, n: usize) -> Value {
    let policies: Map<String, Value> = (0..rng.usize(..4)).map(|n| (format!("p{n}"), policy(rng))).collect();
    let action = one(rng, &["ALLOW", "ALLOW", "DENY"]);
    let route = json!({
        "name": format!("r{n}"),
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "per_filter": {"rbac": {"rbac": {"rules": {"action": action, "policies": policies}}}},
    });
    let domains = [format!("h{n}.test"), format!("h{n}.test:80")];
    json!({"name": format!("h{n}"), "domains": domains, "routes": [route]})
}

fn policy(rng: &mut Rng) -> Value {
    let permissions: Vec<Value> = (0..=rng.usize(..2)).map(|_| permission(rng, DEPTH)).collect();
    let principals: Vec<Value> = (0..=rng.usize(..2)).map(|_| principal(rng, DEPTH)).collect();
    json!({"permissions": permissions, "principals": principals})
}

fn permission(rng: &mut Rng, depth: u8) -> Value {
    let several =
        |rng: &mut Rng| -> Vec<Value> { (0..=rng.usize(..3)).map(|_| permission(rng, depth - 1)).collect() };
    match rng.u8(..if depth == 0 { 8 } else { 12 }) {
        0 => json!({"any": true}),
        1..=3 => json!({"url_path": {"path": text_of(rng, path)}}),
        4 => json!({"destination_port": one(rng, &[80, 443])}),
        5 => json!({"destination_ip": range(rng)}),
        6 | 7 => json!({"header": header(rng)}),
        8 | 9 => json!({"and_rules": {"rules": several(rng)}}),
        10 => json!({"or_rules": {"rules": several(rng)}}),
        _ => json!({"not_rule": permission(rng, depth - 1)}),
    }
}

fn principal(rng: &mut Rng, depth: u8) -> Value {
    let several =
        |rng: &mut Rng| -> Vec<Value> { (0..=rng.usize(..3)).map(|_| principal(rng, depth - 1)).collect() };
    match rng.u8(..if depth == 0 { 9 } else { 13 }) {
        0 => json!({"any": true}),
        1 => json!({"authenticated": {}}),
        2 => json!({"direct_remote_ip": range(rng)}),
        3 | 4 => json!({"remote_ip": range(rng)}),
        5 => json!({"url_path": {"path": text_of(rng, path)}}),
        6..=8 => json!({"header": header(rng)}),
        9 | 10 => json!({"and_ids": {"ids": several(rng)}}),
        11 => json!({"or_ids": {"ids": several(rng)}}),
        _ => json!({"not_id": principal(rng, depth - 1)}),
    }
}

fn range(rng: &mut Rng) -> Value {
    let (address, length) = one(
        rng,
        &[
            ("127.0.0.1", 32),
            ("127.0.0.0", 8),
            ("10.0.0.0", 8),
            ("10.1.0.0", 16),
            ("1.2.3.4", 32),
            ("0.0.0.0", 0),
        ],
    );
    json!({"address_prefix": address, "prefix_len": length})
}

/// A matcher of one header.
pub(super) fn header(rng: &mut Rng) -> Value {
    let mut matcher = json!({});
    let (name, text) = match rng.u8(..8) {
        0 => (":method", one(rng, &["GET", "POST", "get"]).to_owned()),
        1 => (":path", path(rng) + one(rng, &QUERIES)),
        2 => (":authority", format!("h{}.test", rng.u8(..200))),
        _ => (one(rng, &NAMES), one(rng, &VALUES).to_owned()),
    };
    matcher["name"] = name.into();
    match rng.u8(..8) {
        0 => matcher["present_match"] = rng.bool().into(),
        1 => matcher["range_match"] = json!({"start": rng.i64(-10..5), "end": rng.i64(5..20)}),
        _ => matcher["string_match"] = text_of(rng, |_| text.clone()),
    }
    if rng.u8(..4) == 0 {
        matcher["invert_match"] = true.into();
    }
    if rng.u8(..6) == 0 {
        matcher["treat_missing_header_as_empty"] = true.into();
    }
    matcher
}

/// A matcher of text.
pub(super) fn text_of(rng: &mut Rng, text: impl FnOnce(&mut Rng) -> String) -> Value {
    let text = text(rng);
    let whole = if text.is_empty() { "a".to_owned() } else { text.clone() };
    let start: String = whole.chars().take(rng.usize(1..=whole.chars().count())).collect();
    let end: String = whole.chars().skip(rng.usize(..whole.chars().count())).collect();
    let mut matcher = match rng.u8(..6) {
        0 | 1 => json!({"exact": text}),
        2 => json!({"prefix": start}),
        3 => json!({"suffix": end}),
        4 => json!({"contains": one(rng, &SEGMENTS[..5])}),
        _ => {
            let regex = one(rng, &[".*", "/a.*", "[ab]+", "/[^/]*", "1|10", "a?b?c?", "/.*b$", "-?[0-9]+"]);
            return json!({"safe_regex": {"regex": regex}});
        }
    };
    if rng.u8(..4) == 0 {
        matcher["ignore_case"] = true.into();
    }
    matcher
}
