//! The handler on real sockets, asked by hickory's client side, by hand, and at random.

mod hostile;
mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::opt::EdnsOption;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::question::read;
use crate::*;

const ZONE: &str = "mesh.internal";

fn client() -> SocketAddr {
    ([127, 0, 0, 1], 5353).into()
}

fn name(text: &str) -> Name {
    wire_name(text).expect("a name")
}

fn soa() -> Record {
    let soa = Soa {
        server: name("ns.all.mesh.internal"),
        mailbox: name("hostmaster.mesh.internal"),
        serial: 7,
        minimum: 5,
    };
    Record::from_rdata(name(ZONE), 5, soa.into())
}

/// `big` has 100 addresses, `few` has three, `srv` 30 locations with addresses, `late` answers later;
/// everything else does not exist.
struct Fixed;

impl Zone for Fixed {
    fn answer(&self, question: &Question<'_>) -> Reply {
        let yes = |answers: Vec<RData>| Answer { authoritative: true, ttl: 5, answers, ..Answer::default() };
        let addresses = |count: u8| yes((0..count).map(|at| address([10, 0, 0, at].into())).collect());
        let answer = match question.name.within(ZONE) {
            Some("big") => addresses(100),
            Some("few") => addresses(3),
            Some("srv") => {
                let target = |at: u8| name(&format!("i{at}.inst.{ZONE}"));
                let one = |at| RData::SRV(SRV::new(1, 2, 3, target(at)));
                let glue = |at| {
                    let ip = [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(at)];
                    Record::from_rdata(target(at), 5, address(ip.into()))
                };
                Answer { additional: (0..30).map(glue).collect(), ..yes((0..30).map(one).collect()) }
            }
            Some("late") => {
                return Reply::Later(Box::pin(async {
                    tokio::task::yield_now().await;
                    Outcome::Answer(Answer { authoritative: true, ..Answer::default() })
                }));
            }
            Some(_) => {
                Answer { authoritative: true, authority: vec![soa()], ..Answer::code(ResponseCode::NXDomain) }
            }
            None => Answer::code(ResponseCode::Refused),
        };
        answer.into()
    }
}

fn ask(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    ask_with(name, kind, edns, &[])
}

/// A question with options, where it has EDNS.
fn ask_with(name: &str, kind: RecordType, edns: Option<u16>, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        for (code, bytes) in options {
            edns.options_mut().insert(EdnsOption::Unknown(*code, bytes.to_vec()));
        }
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

/// A server on loopback.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(zone: impl Zone) -> Self {
        Self::start_with(zone, Options::default()).await
    }

    async fn start_with(zone: impl Zone, options: Options) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = tcp.local_addr().expect("bound");
            if let Ok(udp) = UdpSocket::bind(address).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { serve_with("test", udp, tcp, Arc::new(zone), options, stop).await }
        });
        Self { address, stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        limit(self.task).await.expect("no panic");
    }

    /// The answer to one message, with its bytes.
    async fn ask(&self, message: &[u8], transport: Transport) -> (Message, Vec<u8>) {
        let bytes = match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
                socket.send_to(message, self.address).await.expect("sent");
                let mut buffer = vec![0; 65_535];
                let len = limit(socket.recv(&mut buffer)).await.expect("an answer");
                buffer.truncate(len);
                buffer
            }
            Transport::Tcp => {
                let mut stream = TcpStream::connect(self.address).await.expect("connects");
                stream.write_u16(u16::try_from(message.len()).expect("short")).await.expect("sent");
                stream.write_all(message).await.expect("sent");
                frame(&mut stream).await
            }
        };
        (Message::from_vec(&bytes).expect("readable"), bytes)
    }
}

async fn frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(limit(stream.read_u16()).await.expect("a frame"))];
    limit(stream.read_exact(&mut bytes)).await.expect("a message");
    bytes
}

async fn limit<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("in time")
}
