//! Questions to a DNS server, one datagram each, for tests that ask often.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const CLASS_IN: [u8; 2] = [0, 1];
const TYPE_A: [u8; 2] = [0, 1];

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The response code: 0 is success, 2 a failure of the server, 3 says that the name does not exist.
    pub code: u8,
    /// The addresses, in the order told.
    pub addresses: Vec<Ipv4Addr>,
}

/// Asks `server` for the addresses (A) of `name`.
///
/// # Errors
///
/// What went wrong, as text; among it that there was no answer.
pub async fn ask(server: SocketAddr, name: &str) -> Result<Answer, String> {
    let id = fastrand::u16(..).to_be_bytes();
    let mut question = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).map_err(|error| error.to_string())?);
        question.extend(label.bytes());
    }
    question.push(0);
    question.extend([TYPE_A, CLASS_IN].concat());
    let work = async {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(server).await?;
        socket.send(&question).await?;
        let mut answer = [0; 4096];
        let length = socket.recv(&mut answer).await?;
        std::io::Result::Ok(answer[..length].to_vec())
    };
    let answer = timeout(ANSWER_TIMEOUT, work).await.map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|error| error.to_string())?;
    if answer.len() < question.len() || answer[..2] != id {
        return Err(format!("this is no answer: {answer:?}"));
    }
    read(&answer, question.len()).ok_or_else(|| format!("this answer is cut off: {answer:?}"))
}

/// Reads the records that follow the question, which ends at `at`.
fn read(answer: &[u8], mut at: usize) -> Option<Answer> {
    let count = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    let mut found = Answer { code: answer.get(3)? & 15, addresses: Vec::new() };
    for _ in 0..count {
        // A name ends with an empty label or a pointer.
        loop {
            match *answer.get(at)? {
                0 => break at += 1,
                pointer if pointer >= 0xc0 => break at += 2,
                label => at += usize::from(label) + 1,
            }
        }
        let (kind, length) = (answer.get(at..at + 2)?, answer.get(at + 8..at + 10)?);
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let data = answer.get(at + 10..at + 10 + length)?;
        if kind == TYPE_A {
            found.addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    Some(found)
}
