//! What was seen of a case, in a form in which two proxies can be compared.

use std::collections::BTreeMap;

use super::bootstrap::Ports;

/// What one proxy did in one case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Who saw what, in order.
    pub(crate) lines: Vec<String>,
    /// Milliseconds from the first byte to the last.
    pub(crate) took_ms: u64,
    /// Of repeated requests: how often which answer came.
    pub(crate) tally: BTreeMap<String, u32>,
}

/// Bodies longer than this are shown by their length and a sum.
const BODY_SHOWN: usize = 300;

/// Headers in the order of their names; of one name, in the order they came.
pub(crate) fn header_lines(headers: &[(String, String)]) -> Vec<String> {
    let mut sorted: Vec<&(String, String)> = headers.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let shown = sorted.into_iter().filter(|(name, _)| name != "x-case");
    shown.map(|(name, value)| format!("  {name}: {}", steady(name, value))).collect()
}

/// Headers of a [`http::HeaderMap`].
pub(crate) fn map_lines(headers: &http::HeaderMap) -> Vec<String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let all: Vec<_> = headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    header_lines(&all)
}

/// A body.
pub(crate) fn body_line(data: &[u8], complete: bool) -> String {
    let cut = if complete { "" } else { " cut after" };
    if data.len() > BODY_SHOWN {
        let sum = data.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        return format!("  body{cut} [{}] sum {sum:08x}", data.len());
    }
    format!("  body{cut} [{}] {:?}", data.len(), String::from_utf8_lossy(data))
}

/// Values that differ from run to run by their nature.
fn steady(name: &str, value: &str) -> String {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    match name {
        "date" if value.ends_with(" GMT") => "<date>".to_owned(),
        "x-envoy-upstream-service-time" if value.parse::<u64>().is_ok() => "<ms>".to_owned(),
        "x-request-id" if value.len() == 36 && hex(value) => "<uuid>".to_owned(),
        // What is left of a timeout, but for the time it took.
        "x-envoy-expected-rq-timeout-ms" => match value.parse::<u64>() {
            Ok(left) if left > 1000 => (left.div_ceil(250) * 250).to_string(),
            Ok(left) => (left.div_ceil(50) * 50).to_string(),
            Err(_) => value.to_owned(),
        },
        _ => value.to_owned(),
    }
}

/// Replaces addresses by the names of who has them, and the case's tag.
pub(crate) fn named(lines: &mut [String], ports: &Ports, clients: &[u16], tag: &str) {
    for line in lines {
        if line.contains(tag) {
            *line = line.replace(tag, "{case}");
        }
        while let Some(at) = line.find("127.0.0.1:") {
            let from = at + "127.0.0.1:".len();
            let digits = line[from..].bytes().take_while(u8::is_ascii_digit).count();
            let port: u16 = line[from..from + digits].parse().unwrap_or_default();
            let name = ports.iter().find(|(_, have)| **have == port).map(|(name, _)| name.as_str());
            let client = clients.contains(&port).then_some("client");
            let name = name.or(client).unwrap_or("port");
            line.replace_range(at..from + digits, &format!("<{name}>"));
        }
    }
}
