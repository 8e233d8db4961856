//! Random requests, out of the few words that random configurations are made of.

use fastrand::Rng;

use crate::parity::fixture::Request;

/// Names of headers.
pub(super) const NAMES: [&str; 4] = ["x-a", "x-b", "x-who", "x-number-of"];
/// Values of headers.
pub(super) const VALUES: [&str; 10] = ["", "a", "A", "ab", "abc", "b", "1", "10", "-5", "a,b"];
/// Parts of paths.
pub(super) const SEGMENTS: [&str; 9] = ["a", "b", "ab", "A", "admin", "a.b", "", "%61", "a;b"];
/// Queries.
pub(super) const QUERIES: [&str; 6] = ["", "?", "?q", "?q=1", "?q=a&r=2", "?r=/a"];
const METHODS: [&str; 5] = ["GET", "GET", "POST", "PUT", "DELETE"];
const CALLERS: [&str; 4] = ["1.2.3.4", "10.0.0.1", "10.1.0.1", "192.168.0.9"];

/// One of them.
pub(super) fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

/// A path of some segments.
pub(super) fn path(rng: &mut Rng) -> String {
    (0..=rng.usize(..3)).map(|_| format!("/{}", one(rng, &SEGMENTS))).collect()
}

/// The `number`-th request, for the virtual host of this configuration.
pub(super) fn request(rng: &mut Rng, number: usize, configuration: usize) -> Request {
    let mut headers = vec![format!("x-number: {number}")];
    for _ in 0..rng.usize(..4) {
        headers.push(format!("{}: {}", one(rng, &NAMES), one(rng, &VALUES)));
    }
    if rng.bool() {
        headers.push(format!("x-forwarded-for: {}", one(rng, &CALLERS)));
    }
    let port = if rng.u8(..4) == 0 { ":80" } else { "" };
    Request {
        method: Some(one(rng, &METHODS).to_owned()),
        path: Some(path(rng) + one(rng, &QUERIES)),
        host: Some(format!("h{configuration}.test{port}")),
        headers,
        ..Request::default()
    }
}
