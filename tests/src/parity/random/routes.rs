//! Random tables of routes.

use fastrand::Rng;
use serde_json::{Value, json};

use super::policies::{header, text_of};
use super::requests::{VALUES, one, path};

/// A virtual host with some routes; which one matched is told by its name.
pub(super) fn virtual_host(rng: &mut Rng, n: usize) -> Value {
    let routes: Vec<Value> = (0..=rng.usize(..8))
        .map(|route| {
            json!({
                "name": format!("h{n}r{route}"),
                "match": route_match(rng),
                "direct_response": {"status": 200 + route},
            })
        })
        .collect();
    let domains = [format!("h{n}.test"), format!("h{n}.test:80")];
    json!({"name": format!("h{n}"), "domains": domains, "routes": routes})
}

fn route_match(rng: &mut Rng) -> Value {
    let given = path(rng);
    let mut route = match rng.u8(..8) {
        0..=2 => {
            let length = rng.usize(1..=given.len());
            json!({"prefix": given.chars().take(length).collect::<String>()})
        }
        3 | 4 => json!({"path": given}),
        5 => match given.trim_end_matches('/') {
            "" => json!({"prefix": "/"}),
            whole => json!({"path_separated_prefix": whole}),
        },
        6 => json!({"safe_regex": {"regex": one(rng, &["/a.*", "/[^/]*", "/[ab]+/.*", "/.*", "/A"])}}),
        _ => json!({"prefix": "/"}),
    };
    if route.get("safe_regex").is_none() && rng.u8(..4) == 0 {
        route["case_sensitive"] = false.into();
    }
    let some = |rng: &mut Rng| rng.u8(..4) == 0;
    if some(rng) {
        route["headers"] = (0..=rng.usize(..2)).map(|_| header(rng)).collect();
    }
    if some(rng) {
        let name = one(rng, &["q", "r", "s"]);
        let value = one(rng, &VALUES).to_owned();
        route["query_parameters"] = json!([if rng.bool() {
            json!({"name": name, "present_match": true})
        } else {
            json!({"name": name, "string_match": text_of(rng, |_| value)})
        }]);
    }
    route
}
