//! The wire form against a codec we did not write, at random, and on real sockets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name as PeerName, RData, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::reply::{encode, relay};
use crate::wire::Malformed;
use crate::*;

const ZONE: &str = "mesh.internal";

fn client() -> SocketAddr {
    ([127, 0, 0, 1], 5353).into()
}

fn soa() -> Record {
    let soa = Soa {
        server: "ns.all.mesh.internal".into(),
        mailbox: "hostmaster.mesh.internal".into(),
        serial: 7,
        minimum: 5,
    };
    Record { owner: Owner::Name(ZONE.into()), ttl: 5, data: Data::Soa(soa) }
}

/// `big` has 100 addresses, `srv` 30 locations with addresses; everything else does not exist.
struct Fixed;

impl Zone for Fixed {
    fn answer(&self, question: &Question<'_>) -> Reply {
        let record = |data| Record { owner: Owner::Question, ttl: 5, data };
        let rest = question.name.within(ZONE).map(str::to_owned);
        let answer = match rest.as_deref() {
            Some("big") => Answer {
                authoritative: true,
                answers: (0..100).map(|at| record(Data::A([10, 0, 0, at].into()))).collect(),
                ..Answer::default()
            },
            Some("srv") => {
                let name = |at: u8| Arc::<str>::from(format!("i{at}.inst.{ZONE}"));
                let one = |at| record(Data::Srv { priority: 1, weight: 2, port: 3, target: name(at) });
                let glue = |at| Record {
                    owner: Owner::Name(name(at)),
                    ttl: 5,
                    data: Data::Aaaa([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(at)].into()),
                };
                Answer {
                    authoritative: true,
                    answers: (0..30).map(one).collect(),
                    additional: (0..30).map(glue).collect(),
                    ..Answer::default()
                }
            }
            Some("late") => {
                return Reply::Later(Box::pin(async {
                    tokio::task::yield_now().await;
                    Outcome::Answer(Answer { authoritative: true, ..Answer::code(Code::NoError) })
                }));
            }
            Some(_) => {
                Answer { authoritative: true, authority: vec![soa()], ..Answer::code(Code::NoSuchName) }
            }
            None => Answer::code(Code::Refused),
        };
        answer.into()
    }
}

fn ask(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(PeerName::from_ascii(name).expect("a name"), kind));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

/// What the zone says to a message, read back by the other codec.
fn answer(message: &[u8], transport: Transport) -> (Message, usize) {
    let question = Question::parse(message, client(), transport).expect("a question");
    let Reply::Now(Outcome::Answer(answer)) = Fixed.answer(&question) else { panic!("known at once") };
    let bytes = encode(&question, &answer);
    (Message::from_vec(&bytes).expect("the other codec reads it"), bytes.len())
}

#[test]
fn answers_are_cut_whole_within_the_clients_size() {
    for (name, edns, transport, size) in [
        ("big.mesh.internal.", None, Transport::Udp, 512),
        ("big.mesh.internal.", Some(100), Transport::Udp, 512),
        ("big.mesh.internal.", Some(700), Transport::Udp, 700),
        ("big.mesh.internal.", Some(65_000), Transport::Udp, 1232),
        ("big.mesh.internal.", None, Transport::Tcp, 65_535),
        ("srv.mesh.internal.", None, Transport::Udp, 512),
        ("srv.mesh.internal.", Some(1232), Transport::Udp, 1232),
        ("srv.mesh.internal.", Some(1232), Transport::Tcp, 65_535),
    ] {
        let all = if name.starts_with("big") { 100 } else { 30 };
        let (message, len) = answer(&ask(name, RecordType::A, edns), transport);
        let found = message.answers.len();
        assert!(len <= size, "{name} {edns:?}: {len} bytes");
        assert_eq!(message.metadata.truncation, found < all, "{name} {edns:?}: {found}");
        assert!(found == all || len > size - 80, "{name} {edns:?}: only {len} bytes used");
        assert_eq!(message.edns.is_some(), edns.is_some());
        assert!(message.metadata.authoritative && message.metadata.recursion_desired);
        assert_eq!(message.metadata.id, 0x1234);
    }
}

#[test]
fn service_records_carry_whole_names_and_their_addresses() {
    let (message, _) = answer(&ask("srv.mesh.internal.", RecordType::SRV, None), Transport::Tcp);
    let targets: BTreeSet<String> = message
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::SRV(srv) => {
                assert_eq!((srv.priority, srv.weight, srv.port), (1, 2, 3));
                srv.target.to_string()
            }
            other => panic!("{other}"),
        })
        .collect();
    let owners: BTreeSet<String> = message.additionals.iter().map(|record| record.name.to_string()).collect();
    assert_eq!((targets.len(), &targets), (30, &owners));
    // RFC 2782: targets are never compressed, so every one stands there in full.
    let question = ask("srv.mesh.internal.", RecordType::SRV, None);
    let parsed = Question::parse(&question, client(), Transport::Tcp).expect("a question");
    let Reply::Now(Outcome::Answer(answer)) = Fixed.answer(&parsed) else { panic!("known at once") };
    let bytes = encode(&parsed, &answer);
    let whole = b"\x04inst\x04mesh\x08internal\x00";
    assert_eq!(bytes.windows(whole.len()).filter(|part| part == whole).count(), 30);
}

#[test]
fn no_comes_with_the_soa_and_the_name_in_the_case_asked() {
    let (message, _) = answer(&ask("NoPe.Mesh.InternaL.", RecordType::A, Some(1232)), Transport::Udp);
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(message.queries[0].name().to_ascii(), "NoPe.Mesh.InternaL.");
    let RData::SOA(soa) = &message.authorities[0].data else { panic!("no SOA") };
    assert_eq!((soa.minimum, message.authorities[0].ttl, soa.serial), (5, 5, 7));
    assert_eq!(message.authorities[0].name.to_ascii().to_lowercase(), "mesh.internal.");
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let good = ask("big.mesh.internal.", RecordType::A, Some(1232));
    let change = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    let mut two_opts = good.clone();
    let opt = two_opts[two_opts.len() - 11..].to_vec();
    two_opts.extend_from_slice(&opt);
    two_opts[11] = 2;
    for (case, message, want) in [
        ("nothing", Vec::new(), Malformed::Ignore),
        ("half a header", good[..11].to_vec(), Malformed::Ignore),
        ("a response", change(2, 0x80), Malformed::Ignore),
        ("a notification", change(2, 0x20), Malformed::Refuse(Code::NotImplemented)),
        ("no question", change(5, 0), Malformed::Refuse(Code::FormError)),
        ("two questions", change(5, 2), Malformed::Refuse(Code::FormError)),
        ("a name that points", change(12, 0xc0), Malformed::Refuse(Code::FormError)),
        ("a label too long", change(12, 0x40), Malformed::Refuse(Code::FormError)),
        ("cut within the name", good[..14].to_vec(), Malformed::Refuse(Code::FormError)),
        ("cut within OPT", good[..good.len() - 3].to_vec(), Malformed::Refuse(Code::FormError)),
        ("two OPTs", two_opts, Malformed::Refuse(Code::FormError)),
    ] {
        let found = Question::parse(&message, client(), Transport::Udp).expect_err(case);
        assert_eq!(found, want, "{case}");
    }
}

#[test]
fn relayed_answers_get_the_clients_id_case_and_size() {
    let asked = ask("ExAmPle.com.", RecordType::A, None);
    let question = Question::parse(&asked, client(), Transport::Udp).expect("a question");
    let mut other = Message::from_vec(&ask("example.com.", RecordType::A, None)).expect("decodes");
    other.metadata.message_type = MessageType::Response;
    other.metadata.id = 9;
    let relayed = relay(&question, other.to_vec().expect("encodes"));
    let message = Message::from_vec(&relayed).expect("decodes");
    assert_eq!(
        (message.metadata.id, message.queries[0].name().to_ascii().as_str()),
        (0x1234, "ExAmPle.com.")
    );
    let long = relay(&question, vec![0; 600]);
    let message = Message::from_vec(&long).expect("decodes");
    assert!(message.metadata.truncation && message.metadata.recursion_available);
    let broken = relay(&question, vec![0; 3]);
    assert_eq!(Message::from_vec(&broken).expect("decodes").metadata.response_code, ResponseCode::ServFail);
}

/// A label of any bytes, rather of plain ones.
fn label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(proptest::char::range('A', 'z').prop_map(|c| c as u8), 1..12),
        1 => proptest::collection::vec(any::<u8>(), 1..64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), tcp in any::<bool>()) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        if let Ok(question) = Question::parse(&bytes, client(), transport)
            && let Reply::Now(Outcome::Answer(answer)) = Fixed.answer(&question)
        {
            prop_assert!(encode(&question, &answer).len() <= question.size_max());
        }
    }

    #[test]
    fn damaged_questions_never_panic_and_answers_stay_readable(
        at in 0_usize..60, value in any::<u8>(), cut in 0_usize..60, edns in any::<Option<u16>>()
    ) {
        let mut message = ask("big.mesh.internal.", RecordType::A, edns);
        let len = message.len();
        message[at % len] = value;
        message.truncate(len - cut % len);
        if let Ok(question) = Question::parse(&message, client(), Transport::Udp)
            && let Reply::Now(Outcome::Answer(answer)) = Fixed.answer(&question)
        {
            let bytes = encode(&question, &answer);
            prop_assert!(bytes.len() <= question.size_max());
            prop_assert!(Message::from_vec(&bytes).is_ok());
        }
    }

    #[test]
    fn both_codecs_read_the_same_question(
        labels in proptest::collection::vec(label(), 0..6),
        kind in any::<u16>(),
        edns in any::<Option<u16>>(),
    ) {
        let Ok(name) = PeerName::from_labels(labels.iter().map(|label| &label[..])) else { return Ok(()) };
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name, RecordType::from(kind)));
        if let Some(payload) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().expect("encodes");
        let question = Question::parse(&bytes, client(), Transport::Udp).expect("a question");
        prop_assert_eq!(question.kind, Kind(kind));
        prop_assert_eq!(question.name.labels().count(), labels.len());
        for (found, want) in question.name.labels().zip(&labels) {
            if want.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') {
                let want = String::from_utf8_lossy(want).to_lowercase();
                prop_assert_eq!(found, want.as_str());
            }
        }
        prop_assert_eq!(question.size_max(), edns.map_or(512, |payload| usize::from(payload).clamp(512, 1232)));
    }
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(zone: impl Zone) -> Self {
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
            async move { serve("test", udp, tcp, Arc::new(zone), stop).await }
        });
        Self { address, stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        limit(self.task).await.expect("no panic");
    }
}

async fn limit<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("in time")
}

async fn ask_udp(server: SocketAddr, message: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.send_to(message, server).await.expect("sent");
    let mut buffer = [0; 4096];
    let len = limit(socket.recv(&mut buffer)).await.expect("an answer");
    Message::from_vec(&buffer[..len]).expect("readable")
}

#[tokio::test]
async fn datagrams_are_answered_at_once_and_later() {
    let server = Running::start(Fixed).await;
    // Rubbish in front must not stop the loop.
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    for rubbish in [&b""[..], b"x", &[0xff; 600]] {
        socket.send_to(rubbish, server.address).await.expect("sent");
    }
    for name in ["big.mesh.internal.", "late.mesh.internal."] {
        let message = ask_udp(server.address, &ask(name, RecordType::A, None)).await;
        assert_eq!(message.metadata.response_code, ResponseCode::NoError, "{name}");
    }
    let mut edns_1 = ask("big.mesh.internal.", RecordType::A, Some(1232));
    let version = edns_1.len() - 5;
    edns_1[version] = 1;
    let message = ask_udp(server.address, &edns_1).await;
    // BADVERS shares its number with BADSIG.
    assert_eq!(u16::from(message.metadata.response_code), 16);
    server.end().await;
}

#[tokio::test]
async fn a_connection_carries_many_questions_in_pieces() {
    let server = Running::start(Fixed).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let mut frames = Vec::new();
    for id in 0_u16..100 {
        let name = if id.is_multiple_of(2) { "big.mesh.internal." } else { "late.mesh.internal." };
        let mut message = ask(name, RecordType::A, None);
        message[..2].copy_from_slice(&id.to_be_bytes());
        frames.extend_from_slice(&u16::try_from(message.len()).expect("short").to_be_bytes());
        frames.extend_from_slice(&message);
    }
    let (mut reading, mut writing) = stream.split();
    let write = async {
        for piece in frames.chunks(7) {
            writing.write_all(piece).await.expect("sent");
        }
    };
    let read = async {
        let mut seen = BTreeSet::new();
        while seen.len() < 100 {
            let len = usize::from(limit(reading.read_u16()).await.expect("a frame"));
            let mut message = vec![0; len];
            reading.read_exact(&mut message).await.expect("a message");
            let message = Message::from_vec(&message).expect("readable");
            let all = if message.metadata.id.is_multiple_of(2) { 100 } else { 0 };
            assert_eq!(message.answers.len(), all);
            assert!(seen.insert(message.metadata.id), "answered once");
        }
    };
    tokio::join!(write, read);
    drop(stream);
    server.end().await;
}

/// Passes everything on.
struct Relay(forward::Forwarder);

impl Zone for Relay {
    fn answer(&self, question: &Question<'_>) -> Reply {
        self.0.forward(question)
    }
}

#[tokio::test]
async fn questions_for_others_are_passed_on_and_the_first_answer_wins() {
    let upstream = Running::start(Fixed).await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port"); // never answers
    let resolvers = vec![silent.local_addr().expect("bound"), upstream.address];
    let relay = Running::start(Relay(forward::Forwarder::new(resolvers))).await;
    let message = ask_udp(relay.address, &ask("BiG.mesh.internal.", RecordType::A, Some(1232))).await;
    assert_eq!(
        (message.metadata.id, message.queries[0].name().to_ascii().as_str()),
        (0x1234, "BiG.mesh.internal.")
    );
    assert!(message.metadata.truncation && !message.answers.is_empty());
    // Over TCP the whole answer comes through, although the resolver truncates over UDP.
    let mut stream = TcpStream::connect(relay.address).await.expect("connects");
    let question = ask("big.mesh.internal.", RecordType::A, None);
    stream.write_u16(u16::try_from(question.len()).expect("short")).await.expect("sent");
    stream.write_all(&question).await.expect("sent");
    let mut bytes = vec![0; usize::from(limit(stream.read_u16()).await.expect("a frame"))];
    stream.read_exact(&mut bytes).await.expect("a message");
    assert_eq!(Message::from_vec(&bytes).expect("readable").answers.len(), 100);
    relay.end().await;
    upstream.end().await;

    let nobody = Running::start(Relay(forward::Forwarder::new(Vec::new()))).await;
    let message = ask_udp(nobody.address, &ask("example.com.", RecordType::A, None)).await;
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    nobody.end().await;
}

#[test]
fn resolv_conf_gives_the_resolvers_except_ourselves() {
    let text = "# comment\nnameserver 127.0.0.1\nnameserver 10.0.0.2\n nameserver 2001:db8::53\nsearch a b\nnameserver x\n";
    let forwarder = forward::Forwarder::from_resolv_conf(text, &[([127, 0, 0, 1], 53).into()]);
    let found: Vec<String> = forwarder.resolvers().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.2:53", "[2001:db8::53]:53"]);
}
