//! Requests to the HTTP API. An example is a whole request without `content-length`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::corpus::Corpus;
use crate::mutate::Mutator;

/// How long an answer is waited for; streams and long polls have none.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);
/// What of an answer is looked at.
const HEAD_BYTES: usize = 256;

/// An example changed in its body, in its target, or anywhere.
pub(crate) fn change(mutator: &mut Mutator, corpus: &Corpus) -> Vec<u8> {
    let example = corpus.pick(&mut mutator.random);
    let other = corpus.pick(&mut mutator.random);
    let (line, headers, body) = parts(example);
    let (mut line, mut body) = (line.to_vec(), body.to_vec());
    match mutator.random.u32(..10) {
        0 => {
            let mut all = example.to_vec();
            mutator.alter(&mut all, other);
            return all;
        }
        1..=3 => {
            let begin = line.iter().position(|byte| *byte == b'/').unwrap_or(0);
            let end = line.iter().rposition(|byte| *byte == b' ').unwrap_or(line.len());
            let mut target = line[begin..end.max(begin)].to_vec();
            let others = parts(other).0;
            mutator.alter(&mut target, others);
            let target: Vec<u8> = target.into_iter().filter(u8::is_ascii_graphic).collect();
            line.splice(begin..end.max(begin), target);
        }
        _ => mutator.alter(&mut body, parts(other).2),
    }
    whole(&line, headers, &body)
}

/// Sends a request; what comes back is an answer, and not that something is wrong here.
pub(crate) async fn attempt(server: SocketAddr, input: &[u8]) -> Result<(), String> {
    let (line, headers, body) = parts(input);
    let well_formed = line.ends_with(b" HTTP/1.1") && headers.starts_with(b"host: localhost\r\n");
    let request = match well_formed && !contains(headers, b"content-length") {
        true => whole(line, headers, body),
        false => input.to_vec(),
    };
    let mut stream = TcpStream::connect(server).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(&request).await?;
        while answer.len() < HEAD_BYTES {
            if stream.read_buf(&mut answer).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    // Closed early, or no answer in time: both are for the server to decide. A panic is not.
    let _ended = timeout(ANSWER_TIME_MAX, exchange).await;
    let head = String::from_utf8_lossy(&answer[..answer.len().min(HEAD_BYTES)]).into_owned();
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    match status {
        Some("500") => Err(format!("the answer is {head}")),
        _ => Ok(()),
    }
}

/// Request line, headers with their line ends, body.
fn parts(request: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let (head, body) = match find(request, b"\r\n\r\n") {
        Some(at) => (&request[..at + 2], &request[at + 4..]),
        None => (request, &[][..]),
    };
    match find(head, b"\r\n") {
        Some(at) => (&head[..at], &head[at + 2..], body),
        None => (head, &[], body),
    }
}

fn whole(line: &[u8], headers: &[u8], body: &[u8]) -> Vec<u8> {
    let length = format!("content-length: {}\r\n\r\n", body.len());
    [line, b"\r\n", headers, length.as_bytes(), body].concat()
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}
