//! Answers as clients get them.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::*;

#[tokio::test]
async fn answers_are_cut_whole_within_the_clients_size() {
    let server = Running::start(Fixed).await;
    for (name, edns, transport, size) in [
        ("big.mesh.internal.", None, Transport::Udp, 512),
        ("big.mesh.internal.", Some(100), Transport::Udp, 512),
        ("big.mesh.internal.", Some(700), Transport::Udp, 700),
        ("big.mesh.internal.", Some(65_000), Transport::Udp, 1232),
        ("big.mesh.internal.", None, Transport::Tcp, 65_535),
        ("few.mesh.internal.", None, Transport::Udp, 512),
        ("few.mesh.internal.", Some(1232), Transport::Udp, 1232),
        ("srv.mesh.internal.", None, Transport::Udp, 512),
        ("srv.mesh.internal.", Some(1232), Transport::Udp, 1232),
        ("srv.mesh.internal.", Some(1232), Transport::Tcp, 65_535),
    ] {
        let all = match &name[..3] {
            "big" => 100,
            "few" => 3,
            _ => 30,
        };
        let (message, bytes) = server.ask(&ask(name, RecordType::A, edns), transport).await;
        let (found, len) = (message.answers.len(), bytes.len());
        assert!(len <= size, "{name} {edns:?}: {len} bytes");
        assert_eq!(message.metadata.truncation, found < all, "{name} {edns:?}: {found}");
        assert!(found == all || len > size - 80, "{name} {edns:?}: only {len} bytes used");
        assert_eq!(message.edns.as_ref().map(Edns::max_payload), edns.map(|_| 1232));
        assert!(message.metadata.authoritative && message.metadata.recursion_desired);
        assert_eq!(message.metadata.id, 0x1234);
    }
    server.end().await;
}

#[tokio::test]
async fn helpful_records_are_left_out_without_a_word() {
    struct Helpful;
    impl Zone for Helpful {
        fn answer(&self, _: &Question<'_>) -> Reply {
            let glue = |at| Record::from_rdata(name(&format!("i{at}.x")), 5, address([10, 0, 0, at].into()));
            let answers = vec![address([10, 0, 0, 1].into())];
            Answer { answers, additional: (0..100).map(glue).collect(), ..Answer::default() }.into()
        }
    }
    let server = Running::start(Helpful).await;
    for edns in [None, Some(1232)] {
        let (message, bytes) = server.ask(&ask("x.", RecordType::A, edns), Transport::Udp).await;
        assert!(!message.metadata.truncation, "RFC 2181, section 9");
        assert_eq!((message.answers.len(), message.edns.is_some()), (1, edns.is_some()));
        assert!((10..100).contains(&message.additionals.len()) && bytes.len() <= 1232);
    }
    server.end().await;
}

#[tokio::test]
async fn service_records_carry_whole_names_and_their_addresses() {
    let server = Running::start(Fixed).await;
    let question = ask("srv.mesh.internal.", RecordType::SRV, None);
    let (message, bytes) = server.ask(&question, Transport::Tcp).await;
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
    let whole = b"\x04inst\x04mesh\x08internal\x00";
    assert_eq!(bytes.windows(whole.len()).filter(|part| part == whole).count(), 30);
    server.end().await;
}

#[tokio::test]
async fn no_comes_with_the_soa_and_the_name_in_the_case_asked() {
    let server = Running::start(Fixed).await;
    let question = ask("NoPe.Mesh.InternaL.", RecordType::A, Some(1232));
    let (message, _) = server.ask(&question, Transport::Udp).await;
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(message.queries[0].name().to_ascii(), "NoPe.Mesh.InternaL.");
    let RData::SOA(soa) = &message.authorities[0].data else { panic!("no SOA") };
    assert_eq!((soa.minimum, message.authorities[0].ttl, soa.serial), (5, 5, 7));
    assert_eq!(message.authorities[0].name.to_ascii().to_lowercase(), "mesh.internal.");
    for name in ["FeW.mesh.internal.", "bIg.mesh.internal."] {
        let (message, _) = server.ask(&ask(name, RecordType::A, None), Transport::Udp).await;
        assert!(message.answers.iter().all(|record| record.name.to_ascii() == name), "{name}");
    }
    server.end().await;
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
        let (message, _) = server.ask(&ask(name, RecordType::A, None), Transport::Udp).await;
        assert_eq!(message.metadata.response_code, ResponseCode::NoError, "{name}");
    }
    let mut edns_1 = ask("big.mesh.internal.", RecordType::A, Some(1232));
    let version = edns_1.len() - 5;
    edns_1[version] = 1;
    let (message, _) = server.ask(&edns_1, Transport::Udp).await;
    // BADVERS shares its number with BADSIG.
    assert_eq!(u16::from(message.metadata.response_code), 16);
    server.end().await;
}

/// A hundred questions, every second one answered later.
fn pipeline() -> Vec<u8> {
    let mut frames = Vec::new();
    for id in 0_u16..100 {
        let name = if id.is_multiple_of(2) { "big.mesh.internal." } else { "late.mesh.internal." };
        let mut message = ask(name, RecordType::A, None);
        message[..2].copy_from_slice(&id.to_be_bytes());
        frames.extend_from_slice(&u16::try_from(message.len()).expect("short").to_be_bytes());
        frames.extend_from_slice(&message);
    }
    frames
}

/// Reads the answers to [`pipeline`].
async fn read_hundred(reading: &mut (impl AsyncReadExt + Unpin)) {
    let mut seen = BTreeSet::new();
    while seen.len() < 100 {
        let message = Message::from_vec(&frame(reading).await).expect("readable");
        let all = if message.metadata.id.is_multiple_of(2) { 100 } else { 0 };
        assert_eq!(message.answers.len(), all);
        assert!(seen.insert(message.metadata.id), "answered once");
    }
}

#[tokio::test]
async fn a_connection_carries_many_questions_in_pieces() {
    let server = Running::start(Fixed).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let (mut reading, mut writing) = stream.split();
    let write = async {
        for piece in pipeline().chunks(7) {
            writing.write_all(piece).await.expect("sent");
        }
    };
    tokio::join!(write, read_hundred(&mut reading));
    drop(stream);
    server.end().await;
}

#[tokio::test]
async fn a_client_that_has_asked_its_last_question_gets_its_answers() {
    let server = Running::start(Fixed).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let (mut reading, mut writing) = stream.split();
    let write = async {
        writing.write_all(&pipeline()).await.expect("sent");
        writing.shutdown().await.expect("shut");
    };
    tokio::join!(write, read_hundred(&mut reading));
    assert_eq!(limit(reading.read(&mut [0])).await.expect("an end"), 0);
    server.end().await;
}

/// The option of this number in an answer.
fn option(message: &Message, code: u16) -> Option<Vec<u8>> {
    match message.edns.as_ref()?.option(code.into())? {
        EdnsOption::Unknown(_, bytes) => Some(bytes.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn whoever_is_over_the_limit_is_sent_to_tcp() {
    let options =
        Options { answers_per_second: NonZeroU32::new(5), limit_loopback: true, ..Options::default() };
    let stats = Arc::clone(&options.stats);
    let server = Running::start_with(Fixed, options).await;
    let question = ask_with("few.mesh.internal.", RecordType::A, Some(1232), &[(10, b"clientck")]);
    let mut full = 0;
    let mut cookie = Vec::new();
    for _ in 0..50 {
        let (message, bytes) = server.ask(&question, Transport::Udp).await;
        if message.metadata.truncation {
            assert!(message.answers.is_empty() && bytes.len() <= question.len());
        } else {
            full += 1;
            cookie = option(&message, 10).expect("a cookie");
        }
    }
    assert!((5..50).contains(&full), "{full} whole answers");
    assert_eq!(stats.limited.load(), 50 - full);
    let (message, _) = server.ask(&question, Transport::Tcp).await;
    assert_eq!(message.answers.len(), 3, "over TCP");
    // Who shows our cookie has proved where it is.
    let question = ask_with("few.mesh.internal.", RecordType::A, Some(1232), &[(10, &cookie)]);
    for _ in 0..20 {
        let (message, _) = server.ask(&question, Transport::Udp).await;
        assert_eq!(message.answers.len(), 3);
    }
    assert_eq!((stats.udp_messages.load(), stats.tcp_messages.load()), (70, 1));
    let half = ask_with("few.mesh.internal.", RecordType::A, Some(1232), &[(10, &cookie[..12])]);
    let (message, _) = server.ask(&half, Transport::Tcp).await;
    assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
    server.end().await;
}

#[tokio::test]
async fn a_note_is_for_clients_with_edns() {
    let nobody = Running::start(Relay(forward::Forwarder::new(Vec::new()))).await;
    for (edns, want) in [(Some(1232), Some(b"\0\x16no other resolver is configured".to_vec())), (None, None)]
    {
        let (message, _) = nobody.ask(&ask("example.com.", RecordType::A, edns), Transport::Udp).await;
        assert_eq!(option(&message, 15), want);
    }
    nobody.end().await;
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let options = Options { connections_max: 20, ..Options::default() };
    let stats = Arc::clone(&options.stats);
    let server = Running::start_with(Fixed, options).await;
    let mut idle = Vec::new();
    for _ in 0..30 {
        idle.push(TcpStream::connect(server.address).await.expect("connects"));
    }
    let (message, _) = server.ask(&ask("few.mesh.internal.", RecordType::A, None), Transport::Tcp).await;
    assert_eq!(message.answers.len(), 3);
    assert_eq!((stats.connections.load(), stats.connections_cut.load()), (31, 11));
    assert_eq!(limit(idle[0].read(&mut [0])).await.expect("closed"), 0, "the oldest is closed");
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
    let question = ask("BiG.mesh.internal.", RecordType::A, Some(1232));
    let (message, bytes) = relay.ask(&question, Transport::Udp).await;
    assert_eq!(
        (message.metadata.id, message.queries[0].name().to_ascii().as_str()),
        (0x1234, "BiG.mesh.internal.")
    );
    assert!(message.metadata.truncation && !message.answers.is_empty());
    let (_, direct) = upstream.ask(&question, Transport::Udp).await;
    assert_eq!(bytes, direct, "intact");
    // Over TCP the whole answer comes through, although the resolver truncates over UDP.
    let (message, _) = relay.ask(&ask("big.mesh.internal.", RecordType::A, None), Transport::Tcp).await;
    assert_eq!(message.answers.len(), 100);
    relay.end().await;
    upstream.end().await;

    let nobody = Running::start(Relay(forward::Forwarder::new(Vec::new()))).await;
    let (message, _) = nobody.ask(&ask("example.com.", RecordType::A, None), Transport::Udp).await;
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    nobody.end().await;
}

#[tokio::test]
async fn relayed_answers_get_the_clients_id_case_and_size() {
    struct Foreign(Vec<u8>);
    impl Zone for Foreign {
        fn answer(&self, _: &Question<'_>) -> Reply {
            Reply::Now(Outcome::Relayed(self.0.clone()))
        }
    }
    let mut other = Message::from_vec(&ask("example.com.", RecordType::A, None)).expect("decodes");
    other.metadata.message_type = MessageType::Response;
    other.metadata.id = 9;
    let short = other.to_vec().expect("encodes");
    for (foreign, code, truncated) in [
        (short, ResponseCode::NoError, false),
        (vec![0; 600], ResponseCode::NoError, true),
        (vec![0; 3], ResponseCode::ServFail, false),
    ] {
        let server = Running::start(Foreign(foreign)).await;
        let (message, _) = server.ask(&ask("ExAmPle.com.", RecordType::A, None), Transport::Udp).await;
        assert_eq!(message.metadata.id, 0x1234);
        assert_eq!(message.queries[0].name().to_ascii(), "ExAmPle.com.");
        assert_eq!((message.metadata.response_code, message.metadata.truncation), (code, truncated));
        server.end().await;
    }
}

#[test]
fn resolv_conf_gives_the_resolvers_except_ourselves() {
    let text = "# comment\nnameserver 127.0.0.1\nnameserver 10.0.0.2\n nameserver 2001:db8::53\nsearch a b\nnameserver x\n";
    let forwarder = forward::Forwarder::from_resolv_conf(text, &[([127, 0, 0, 1], 53).into()]);
    let found: Vec<String> = forwarder.resolvers().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.2:53", "[2001:db8::53]:53"]);
}
