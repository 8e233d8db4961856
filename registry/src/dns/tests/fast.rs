//! Answers that are ready as bytes, held against the general way: the same questions, at random, to the
//! same zone with and without them.

use std::collections::BTreeSet;
use std::net::UdpSocket as StdUdpSocket;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{Record, RecordType};
use pillion_dns::{Question, Reply, Zone};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// The zone without what is ready.
struct General(Arc<RegistryZone>);

impl Zone for General {
    fn answer(&self, question: &Question<'_>) -> Reply {
        self.0.answer(question)
    }
}

/// One of two servers, and a client of it.
struct Asked {
    socket: StdUdpSocket,
    /// Our cookie for this client.
    cookie: Vec<u8>,
}

/// A message to make, with a hole where the server's cookie goes.
#[derive(Clone, Debug)]
struct Draft {
    before: Vec<u8>,
    options: Vec<Opt>,
    edns: Option<[u8; 8]>,
    behind: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Opt {
    /// A client's cookie.
    Client,
    /// The same with the server's behind.
    Ours,
    Other(u16, Vec<u8>),
}

const CLIENT_COOKIE: [u8; 8] = [7; 8];

impl Draft {
    fn bytes(&self, ours: &[u8]) -> Vec<u8> {
        let mut bytes = self.before.clone();
        if let Some(fixed) = self.edns {
            let mut options = Vec::new();
            for option in &self.options {
                let (code, content) = match option {
                    Opt::Client => (10, &CLIENT_COOKIE[..]),
                    Opt::Ours => (10, ours),
                    Opt::Other(code, content) => (*code, &content[..]),
                };
                options.extend(code.to_be_bytes());
                options.extend(u16::try_from(content.len()).expect("short").to_be_bytes());
                options.extend(content);
            }
            bytes.extend([0, 0, 41]);
            bytes.extend(&fixed[..6]);
            bytes.extend(u16::try_from(options.len()).expect("short").to_be_bytes());
            bytes.extend(options);
        }
        bytes.extend(&self.behind);
        bytes
    }
}

const NAMES: [&str; 24] = [
    "orders.shop.mesh.internal",
    "orders.shop.svc.mesh.internal",
    "all.orders.shop.mesh.internal",
    "v2.sub.orders.shop.mesh.internal",
    "v3.sub.orders.shop.mesh.internal",
    "sub.orders.shop.mesh.internal",
    "a.inst.orders.shop.mesh.internal",
    "six.inst.orders.shop.mesh.internal",
    "nobody.inst.orders.shop.mesh.internal",
    "_http._tcp.orders.shop.mesh.internal",
    "_http._tcp.v2.sub.orders.shop.mesh.internal",
    "_admin._tcp.orders.shop.mesh.internal",
    "_none._tcp.orders.shop.mesh.internal",
    "empty.shop.mesh.internal",
    "nobody.shop.mesh.internal",
    "crowd.shop.mesh.internal",
    "_http._tcp.crowd.shop.mesh.internal",
    "uneven.shop.mesh.internal",
    "sick.shop.mesh.internal",
    "web.mesh.internal",
    "mesh.internal",
    "shop.mesh.internal",
    "example.com",
    "w\u{1}eb.mesh.internal",
];

/// A question in nearly every form there is; most of them ordinary.
fn draft() -> impl Strategy<Value = Draft> {
    let long = format!("{0}.{0}.{0}.{1}.mesh.internal", "x".repeat(63), "y".repeat(46));
    let names: Vec<String> =
        NAMES.iter().map(|name| (*name).to_owned()).chain([long, String::new()]).collect();
    let kind = prop_oneof![8 => prop::sample::select(vec![1_u16, 28, 33]), 1 => any::<u16>()]
        .prop_filter("zones are not for UDP", |kind| ![251, 252].contains(kind));
    let class = prop_oneof![9 => Just(1_u16), 1 => prop::sample::select(vec![3, 254, 255])];
    let flags = prop_oneof![9 => Just([0x01, 0x20]), 1 => any::<[u8; 2]>()];
    let size = prop::sample::select(vec![0_u16, 100, 511, 512, 513, 700, 1232, 1233, 4096, 65_535]);
    let option = prop_oneof![
        4 => Just(Opt::Client),
        4 => Just(Opt::Ours),
        1 => prop::collection::vec(any::<u8>(), 0..44).prop_map(|content| Opt::Other(10, content)),
        1 => prop::collection::vec(any::<u8>(), 0..9).prop_map(|content| Opt::Other(65_001, content)),
    ];
    let options = prop_oneof![2 => Just(Vec::new()), 4 => option.clone().prop_map(|one| vec![one]), 1 => prop::collection::vec(option, 2..4)];
    // Size, extended code, version, flags.
    let edns = (
        size,
        prop_oneof![9 => Just([0, 0]), 1 => any::<[u8; 2]>()],
        prop_oneof![4 => Just([0, 0]), 4 => Just([0x80, 0]), 1 => any::<[u8; 2]>()],
    )
        .prop_map(|(size, version, flags)| {
            let [a, b] = size.to_be_bytes();
            [a, b, version[0], version[1], flags[0], flags[1], 0, 0]
        });
    let behind = prop_oneof![9 => Just(Vec::new()), 1 => prop::collection::vec(any::<u8>(), 1..9)];
    let head = (any::<u16>(), flags, prop::sample::select(names), any::<u64>(), kind, class);
    (head, prop::option::of(edns), options, behind).prop_map(
        |((id, flags, name, cases, kind, class), edns, options, behind)| {
            let mut before = id.to_be_bytes().to_vec();
            before.extend([flags[0] & 0x7f, flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
            let mut at = 0;
            for label in name.split('.').filter(|label| !label.is_empty()) {
                before.push(u8::try_from(label.len()).expect("a label"));
                for byte in label.bytes() {
                    at += 1;
                    before.push(if cases >> (at % 64) & 1 == 1 { byte.to_ascii_uppercase() } else { byte });
                }
            }
            before.push(0);
            before.extend(kind.to_be_bytes());
            before.extend(class.to_be_bytes());
            Draft { before, options, edns, behind }
        },
    )
}

impl Asked {
    fn new(server: SocketAddr) -> Self {
        let socket = StdUdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.connect(server).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut asked = Self { socket, cookie: Vec::new() };
        // Who knows addresses is looked up aside once, out of order.
        let reverse = Draft::of("1.0.0.10.in-addr.arpa", vec![]);
        asked.socket.send(&reverse.bytes(&[])).expect("sent");
        asked.receive();
        let answer = asked.ask(&Draft::of("web.mesh.internal", vec![Opt::Client])).expect("an answer");
        let answer = Message::from_vec(&answer).expect("readable");
        let options = answer.edns.as_ref().expect("EDNS").options().clone();
        let cookie = options.as_ref().iter().find(|(code, _)| *code == EdnsCode::Cookie).expect("a cookie");
        asked.cookie = Vec::try_from(&cookie.1).expect("bytes");
        assert_eq!(asked.cookie.len(), 24);
        asked
    }

    /// The answer, if there is one. A further question comes behind: it is answered last.
    fn ask(&self, draft: &Draft) -> Option<Vec<u8>> {
        let mut message = draft.bytes(&self.cookie);
        message[..2].copy_from_slice(&[1, 2]);
        let mut last = Draft::of("web.mesh.internal", vec![]).bytes(&[]);
        last[..2].copy_from_slice(&[3, 4]);
        self.socket.send(&message).expect("sent");
        self.socket.send(&last).expect("sent");
        let first = self.receive();
        if first[..2] == [3, 4] {
            return None;
        }
        assert_eq!(self.receive()[..2], [3, 4]);
        Some(first)
    }

    fn receive(&self) -> Vec<u8> {
        let mut answer = vec![0; 65_535];
        let len = self.socket.recv(&mut answer).expect("an answer");
        answer.truncate(len);
        answer
    }
}

impl Draft {
    fn of(name: &str, options: Vec<Opt>) -> Self {
        let mut before = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in name.split('.') {
            before.push(u8::try_from(label.len()).expect("a label"));
            before.extend(label.bytes());
        }
        before.extend([0, 0, 1, 0, 1]);
        Self { before, options, edns: Some([4, 208, 0, 0, 0, 0, 0, 0]), behind: Vec::new() }
    }
}

fn texts(records: &[Record]) -> BTreeSet<String> {
    records.iter().map(ToString::to_string).collect()
}

/// Compares two answers to one question; tells whether they hold records.
fn compare(fast: &[u8], general: &[u8]) -> Result<(), TestCaseError> {
    let (mut a, mut b) =
        (Message::from_vec(fast).expect("readable"), Message::from_vec(general).expect("readable"));
    prop_assert_eq!(&a.metadata, &b.metadata);
    prop_assert_eq!(&a.queries, &b.queries);

    // The zone's name is the end of the question's, and has its case.
    let lower = |records| texts(records).iter().map(|text| text.to_lowercase()).collect::<Vec<_>>();
    prop_assert_eq!(lower(&a.authorities), lower(&b.authorities));
    let options = |message: &mut Message| {
        message.edns.as_ref().map(|edns| {
            let options = edns.options().as_ref().iter().map(|(code, option)| {
                let mut bytes = Vec::try_from(option).expect("bytes");
                if *code == EdnsCode::Cookie {
                    assert_eq!(bytes.len(), 24);
                    bytes.truncate(8); // what follows is each server's own
                }
                (u16::from(*code), bytes)
            });
            (edns.version(), edns.max_payload(), *edns.flags(), options.collect::<BTreeSet<_>>())
        })
    };
    prop_assert_eq!(options(&mut a), options(&mut b));
    let srv = a.queries.first().is_some_and(|query| query.query_type() == RecordType::SRV);
    let (of_a, of_b) = (texts(&a.answers), texts(&b.answers));
    prop_assert_eq!(of_a.len(), a.answers.len(), "a record twice");
    if a.metadata.truncation {
        let (most, least) = (of_a.len().max(of_b.len()), of_a.len().min(of_b.len()));
        // Targets have names of different lengths.
        prop_assert!(most - least <= usize::from(srv), "{} and {} records", of_a.len(), of_b.len());
    } else {
        prop_assert_eq!(&of_a, &of_b);
    }
    // Each address belongs to a target, and there are no fewer of them.
    let targets: BTreeSet<String> = a
        .answers
        .iter()
        .filter_map(|one| Some(one.data.to_string().split_whitespace().nth(3)?.to_owned()))
        .collect();
    for address in &a.additionals {
        prop_assert!(targets.contains(&address.name.to_string()), "{}", address);
    }
    prop_assert!(
        a.additionals.len() + 1 >= b.additionals.len(),
        "{} addresses, {}",
        a.additionals.len(),
        b.additionals.len()
    );
    if !a.metadata.truncation
        && a.additionals.len() == a.answers.len()
        && b.additionals.len() == b.answers.len()
    {
        prop_assert_eq!(texts(&a.additionals), texts(&b.additionals));
    }
    Ok(())
}

/// `orders`, `crowd` with 1,000 instances, `uneven` with 200 of different weights, `sick` with nobody
/// who takes traffic.
fn everything() -> World {
    let World { resources, catalog: orders, .. } = world();
    let mut instances: Vec<Instance> = orders
        .services
        .values()
        .flat_map(|one| one.instances.values())
        .map(|one| Instance::clone(one))
        .collect();
    let (crowd, uneven, sick) =
        (service("shop", "crowd"), service("shop", "uneven"), service("shop", "sick"));
    for at in 0..1000_u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0a01_0000 + at).to_string();
        instances.push(instance(&crowd, &format!("i{at}"), &address));
        if at < 200 {
            instances.push(Instance { weight: at, ..instance(&uneven, &format!("i{at}"), &address) });
        }
    }
    let mut down = instance(&sick, "one", "10.9.9.9");
    down.health.probe = Probe::Failing;
    instances.push(down);
    World { revision: 7, catalog: Arc::new(catalog(instances)), resources, ..World::default() }
}

#[test]
fn what_is_ready_says_the_same_as_the_general_way() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let inside = runtime.enter();
    let server = Server::start(Some(everything()));
    let (udp, tcp) = bind_udp_and_tcp("dns", ([127, 0, 0, 1], 0).into()).expect("a port");
    let at = udp.local_addr().expect("bound");
    let (udp, tcp) = (UdpSocket::from_std(udp).expect("tokio"), TcpListener::from_std(tcp).expect("tokio"));
    let (general, stop) = (Arc::new(General(Arc::clone(&server.zone))), server.stop.clone());
    let task = runtime.spawn(async move { serve("general", udp, tcp, general, stop).await });
    drop(inside);

    let (fast, general) = (Asked::new(server.address), Asked::new(at));
    let mut runner = TestRunner::new(Config { cases: 3000, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&draft(), |draft| {
        let (fast, general) = (fast.ask(&draft), general.ask(&draft));
        prop_assert_eq!(fast.is_some(), general.is_some());
        fast.zip(general).map_or(Ok(()), |(fast, general)| compare(&fast, &general))
    });
    runtime.block_on(async {
        server.end().await;
        task.await.expect("ended");
    });
    ran.expect("both say the same");
}

#[test]
fn a_change_is_seen_at_once_and_leaves_other_answers_alone() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let before = world();
    let server = runtime.block_on(async { Server::start(Some(before.clone())) });
    let asked = Asked::new(server.address);
    let addresses = |name: &str| {
        let answer = asked.ask(&Draft::of(name, vec![])).expect("an answer");
        let answer = Message::from_vec(&answer).expect("readable");
        let texts: BTreeSet<String> = answer.answers.iter().map(|one| one.data.to_string()).collect();
        (answer.metadata.response_code, texts.into_iter().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(addresses("web.mesh.internal"), (ResponseCode::NoError, "10.0.1.1".to_owned()));
    assert_eq!(addresses("new.mesh.internal").0, ResponseCode::NXDomain);
    // As the catalog makes it: from the state before, noting what changed.
    let mut next = before;
    let mut services = next.catalog.services.clone();
    let web = service("default", "web");
    for (name, id, address) in [(web, "web-1", "10.0.1.2"), (service("default", "new"), "one", "10.0.1.3")] {
        let made = catalog(vec![instance(&name, id, address)]);
        services.insert_mut(name.clone(), Arc::clone(&made.services[&name]));
        next.changes.note(name);
    }
    next.revision = 8;
    next.catalog = Arc::new(CatalogView { revision: 8, services });
    server.set(next);
    assert_eq!(addresses("web.mesh.internal"), (ResponseCode::NoError, "10.0.1.2".to_owned()));
    assert_eq!(addresses("new.mesh.internal"), (ResponseCode::NoError, "10.0.1.3".to_owned()));
    assert_eq!(addresses("orders.shop.mesh.internal").1, "10.0.0.1 10.0.0.2 10.0.0.3");
    let mut none = world();
    none.catalog = Arc::default();
    server.set(none);
    assert_eq!(addresses("new.mesh.internal").0, ResponseCode::NXDomain);
    assert_eq!(addresses("orders.shop.mesh.internal"), (ResponseCode::NoError, String::new()));
    runtime.block_on(server.end());
}
