//! HTTP/1 messages in bytes, read without any judgement: what a proxy sent is shown as it is.

use super::seen::{body_line, header_lines};

/// A message's first line and headers, and how long they are.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) first: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) bytes: usize,
}

/// How much of a body is there.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) data: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Bytes it takes in the stream.
    pub(crate) bytes: usize,
    pub(crate) complete: bool,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(usize),
    Chunked,
    /// With the connection.
    Close,
}

impl Head {
    /// The head at the beginning of `bytes`, if all of it is there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = find(bytes, b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(split_header).collect();
        Some(Self { first, headers, bytes: end + 4 })
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// How the body ends by the headers; `without`: if they do not say.
    pub(crate) fn framing(&self, without: Framing) -> Framing {
        let chunked = self.header("transfer-encoding").is_some_and(|codings| codings.contains("chunked"));
        let length = self.header("content-length").and_then(|length| length.parse().ok());
        if chunked { Framing::Chunked } else { length.map_or(without, Framing::Length) }
    }

    /// A response's status.
    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }
}

/// `name: value`, the name in lower case.
pub(crate) fn split_header(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}

impl Body {
    /// What is there of a body.
    pub(crate) fn parse(bytes: &[u8], framing: Framing) -> Self {
        match framing {
            Framing::None => Self::plain(&[], true),
            Framing::Length(length) => Self::plain(&bytes[..length.min(bytes.len())], bytes.len() >= length),
            Framing::Close => Self::plain(bytes, false),
            Framing::Chunked => Self::chunks(bytes),
        }
    }

    fn plain(data: &[u8], complete: bool) -> Self {
        Self { data: data.to_vec(), trailers: Vec::new(), bytes: data.len(), complete }
    }

    fn chunks(bytes: &[u8]) -> Self {
        let mut body = Self::plain(&[], false);
        while let Some(line) = find(&bytes[body.bytes..], b"\r\n") {
            let size = String::from_utf8_lossy(&bytes[body.bytes..body.bytes + line]).into_owned();
            let size = size.split(';').next().unwrap_or_default().trim().to_owned();
            let Ok(size) = usize::from_str_radix(&size, 16) else { break };
            let from = body.bytes + line + 2;
            if size == 0 {
                // Trailers end as heads do; without any, the last line's end is the first of two.
                if let Some(end) = find(&bytes[from - 2..], b"\r\n\r\n") {
                    let text = String::from_utf8_lossy(&bytes[from - 2..from - 2 + end]).into_owned();
                    body.trailers =
                        text.split("\r\n").filter(|line| !line.is_empty()).map(split_header).collect();
                    body.bytes = from - 2 + end + 4;
                    body.complete = true;
                }
                break;
            }
            let Some(chunk) = bytes.get(from..from + size) else {
                body.data.extend_from_slice(&bytes[from..]);
                body.bytes = bytes.len();
                break;
            };
            body.data.extend_from_slice(chunk);
            body.bytes = (from + size + 2).min(bytes.len());
        }
        body
    }
}

/// Everything a server sent on one connection.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    /// Final responses that are complete.
    pub(crate) complete: usize,
    /// Final responses that have begun.
    pub(crate) begun: usize,
    pub(crate) lines: Vec<String>,
}

impl Responses {
    /// Reads `bytes`, sent in answer to requests with these methods; `ended`: there is no more.
    pub(crate) fn parse(mut bytes: &[u8], methods: &[String], ended: bool) -> Self {
        let mut all = Self::default();
        while !bytes.is_empty() {
            let Some(head) = Head::parse(bytes) else {
                all.lines.push(format!("no HTTP: {:?}", String::from_utf8_lossy(bytes)));
                break;
            };
            let (method, status) = (methods.get(all.begun).map_or("GET", |method| &**method), head.status());
            all.lines.push(head.first.clone());
            all.lines.extend(header_lines(&head.headers));
            bytes = &bytes[head.bytes..];
            if status == 101 || (method == "CONNECT" && status == 200) {
                all.begun += 1;
                all.complete += 1;
                all.lines.push(format!("  then {:?}", String::from_utf8_lossy(bytes)));
                break;
            }
            if (100..200).contains(&status) {
                continue;
            }
            let bodiless = method == "HEAD" || status == 204 || status == 304;
            let framing = if bodiless { Framing::None } else { head.framing(Framing::Close) };
            let body = Body::parse(bytes, framing);
            let complete = body.complete || (framing == Framing::Close && ended);
            all.begun += 1;
            all.complete += usize::from(complete);
            all.lines.push(body_line(&body.data, complete));
            all.lines.extend(body.trailers.iter().map(|(name, value)| format!("  trailer {name}: {value}")));
            bytes = &bytes[body.bytes..];
            if !complete {
                break;
            }
        }
        all
    }
}

/// Where `part` begins.
pub(crate) fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_sent_is_read_as_it_is() {
        let get = ["GET".to_owned(), "GET".to_owned()];
        for (bytes, complete, last) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 1, "  body [2] \"ok\""),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", 0, "  body cut after [2] \"ok\""),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                1,
                "  body [2] \"ok\"",
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\na: b\r\n\r\n",
                1,
                "  trailer a: b",
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 X\r\n\r\n",
                2,
                "  body [0] \"\"",
            ),
        ] {
            let read = Responses::parse(bytes.as_bytes(), &get, false);
            assert_eq!(read.complete, complete, "{bytes}: {read:?}");
            assert_eq!(read.lines.last().map(String::as_str), Some(last), "{bytes}");
        }
    }
}
