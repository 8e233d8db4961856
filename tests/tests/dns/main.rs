//! DNS of registry and sidecar, asked by dig and kdig.

mod crowd;
mod forward;
mod hostile;
mod outage;
mod unbound;

use pillion_tests::support::binary::repository;
use pillion_tests::support::process::finish;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually, peer};
use serde_json::json;

#[tokio::test]
async fn names_are_answered_and_denied_as_dig_reads_it() {
    let (Some(dig), Some(kdig)) = (peer("dig"), peer("kdig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let applied =
        registry.cli(&["apply", "-f", &repository().join("examples/shop.yaml").display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let body = json!({"address": "10.0.0.5", "ports": {"http": {"port": 8080}}, "labels": {"version": "v1"}});
    let answer = registry.put("/v1/namespaces/shop/services/orders/instances/orders-1", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");

    let port = registry.dns.port().to_string();
    let dig = async |words: &str| {
        let fixed = ["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"];
        finish(&dig, fixed.into_iter().chain(words.split(' '))).await.stdout
    };
    eventually("the instance is in DNS", DEADLINE, || async {
        let answer = dig("+short orders.shop.mesh.internal A").await;
        if answer.trim() == "10.0.0.5" { Ok(()) } else { Err(answer) }
    })
    .await;
    for (question, wants) in [
        (
            "orders.shop.mesh.internal A",
            &["status: NOERROR", "10.0.0.5", " 5 IN A 10.0.0.5", "flags: qr aa"][..],
        ),
        ("ORDERS.Shop.mesh.INTERNAL A", &["ORDERS.Shop.mesh.INTERNAL.", "10.0.0.5"]),
        ("orders.shop.svc.mesh.internal A", &["10.0.0.5"]),
        ("v1.sub.orders.shop.mesh.internal A", &["10.0.0.5"]),
        ("orders-1.inst.orders.shop.mesh.internal A", &["10.0.0.5"]),
        ("_http._tcp.orders.shop.mesh.internal SRV", &[" IN SRV ", "8080"]),
        ("-x 10.0.0.5", &[" IN PTR ", "orders"]),
        ("orders.shop.mesh.internal AAAA", &["status: NOERROR", "ANSWER: 0", " IN SOA "]),
        ("payments.shop.mesh.internal A", &["status: NOERROR", "ANSWER: 0", " IN SOA "]),
        ("v2.sub.orders.shop.mesh.internal A", &["status: NOERROR", "ANSWER: 0"]),
        ("nobody.shop.mesh.internal A", &["status: NXDOMAIN", " IN SOA "]),
        ("mesh.internal SOA", &["status: NOERROR", " IN SOA "]),
        ("mesh.internal NS", &["status: NOERROR", " IN NS "]),
        ("example.com A", &["status: REFUSED"]),
        ("+tcp orders.shop.mesh.internal A", &["10.0.0.5", "(TCP)"]),
    ] {
        let answer = dig(question).await;
        let plain = answer.split_whitespace().collect::<Vec<_>>().join(" "); // dig aligns by tabs
        for want in wants {
            assert!(plain.contains(want), "{question}: no `{want}` in\n{answer}");
        }
    }
    let answer =
        finish(&kdig, ["@127.0.0.1", "-p", &port, "+tcp", "+edns", "orders.shop.mesh.internal", "A"]).await;
    assert!(answer.stdout.contains("10.0.0.5") && answer.stdout.contains("EDNS PSEUDOSECTION"), "{answer:?}");
}

#[tokio::test]
async fn who_asks_too_much_is_sent_to_tcp_and_told_why_there_is_no_answer() {
    let (Some(dig), Some(kdig)) = (peer("dig"), peer("kdig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let limit = ["--open", "--dns-rate-limit", "20", "--dns-limit-loopback"];
    let registry = Registry::start_with(data.path(), &limit).await;
    let body = json!({"address": "10.0.0.5", "port": 8080});
    let answer = registry.put("/v1/namespaces/shop/services/orders/instances/orders-1", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let port = registry.dns.port().to_string();
    let ask = async |program, words: &str| {
        finish(program, ["@127.0.0.1", "-p", &port].into_iter().chain(words.split(' '))).await.stdout
    };
    eventually("the instance is in DNS", DEADLINE, || async {
        let answer = ask(&dig, "+tcp +short orders.shop.mesh.internal A").await;
        if answer.trim() == "10.0.0.5" { Ok(()) } else { Err(answer) }
    })
    .await;

    // One dig with 60 questions is faster than 20 in a second.
    let many = ["+ignore +nocookie orders.shop.mesh.internal A"; 60].join(" ");
    let answers = ask(&dig, &many).await;
    let cut = answers.matches(" tc ").count();
    assert!((1..60).contains(&cut), "{cut} of 60 are cut:\n{answers:.2000}");
    let whole: Vec<_> = answers.split(";; Got answer:").skip(1).filter(|it| !it.contains(" tc ")).collect();
    assert_eq!(whole.len(), 60 - cut, "{answers}");
    for answer in whole {
        assert!(answer.contains("\tA\t10.0.0.5"), "{answer}");
    }
    // Left to itself, dig asks again over TCP.
    let answers = ask(&dig, &["+nocookie +short orders.shop.mesh.internal A"; 60].join(" ")).await;
    assert_eq!(answers.lines().collect::<Vec<_>>(), ["10.0.0.5"; 60]);
    // kdig keeps the cookie it gets and says whether it came back.
    let answer = ask(&kdig, "+cookie orders.shop.mesh.internal A").await;
    assert!(answer.contains("COOKIE: ") && answer.contains("10.0.0.5"), "{answer}");
    let metrics = registry.get("/metrics").await.body;
    let limited = metrics.lines().find_map(|line| line.strip_prefix("pillion_dns_limited_total "));
    let limited: usize = limited.and_then(|number| number.parse().ok()).expect("counted");
    assert!(limited > cut, "{limited} are counted, {cut} were seen");

    let answer = ask(&dig, "+tcp example.com A").await;
    assert!(answer.contains("EDE: 20 (Not Authoritative): (this server answers mesh.internal)"), "{answer}");
}

/// Damaged questions, rubbish behind them, and responses: none of the latter may be answered, no answer
/// be too long, and the server must go on.
#[tokio::test]
async fn rubbish_is_survived() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.connect(registry.dns).await.expect("connects");
    let question =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04mesh\x08internal\x00\x00\x06\x00\x01";
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15; // xorshift: the same rubbish each time
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random & 0xffff).expect("16 bits")
    };
    let mut answers = 0;
    for round in 0..5000 {
        let mut message = question.to_vec();
        for _ in 0..=next() % 4 {
            let at = next() % message.len();
            message[at] = u8::try_from(next() % 256).expect("a byte");
        }
        if round % 3 == 0 {
            message.truncate(next() % message.len());
        }
        if round % 5 == 0 {
            message.extend((0..next() % 600).map(|at| u8::try_from(at % 256).expect("a byte")));
        }
        let response = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
        if response {
            // The id tells which message an answer is to.
            message[..2].copy_from_slice(b"RR");
        } else if message.len() > 1 {
            message[..2].copy_from_slice(b"QQ");
        }
        socket.send(&message).await.expect("sent");
        answers += drain(&socket);
    }
    let port = registry.dns.port().to_string();
    let answer = finish(&dig, ["@127.0.0.1", "-p", &port, "mesh.internal", "SOA"]).await.stdout;
    assert!(answer.contains("status: NOERROR") && answer.contains("SOA"), "{answer}");
    answers += drain(&socket);
    assert!(answers > 100, "only {answers} answers were seen");
}

#[tokio::test]
async fn a_sidecar_knows_names_below_its_services() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    registry.apply("{kind: Service, name: hello, ports: [{name: http, port: 8080, protocol: http}]}").await;
    let hello = App::start("hello").await;
    let port = hello.port().to_string();
    let _server = Plan::new(registry.mesh, "hello.default", &port).instance("hello-1").start().await;
    registry.serving("hello.default", 1).await;
    let web = Sidecar::caller(&registry, "web.default").await;
    web.get_until("hello.default.mesh.internal:8080", "/", 200).await;
    let port = web.dns.port().to_string();
    for (question, want) in [
        ("all.hello.mesh.internal A", "IN A 127.0.0.1"),
        ("hello-1.inst.hello.default.mesh.internal A", "IN A 127.0.0.1"),
        ("hello-1.inst.hello.mesh.internal AAAA", "NOERROR"),
        ("_http._tcp.hello.mesh.internal SRV", "IN SRV 0 100 8080 hello.mesh.internal."),
        ("hello.mesh.internal AAAA", "NOERROR"),
        ("_tcp.hello.mesh.internal A", "NOERROR"),
        ("inst.hello.mesh.internal A", "NOERROR"),
        ("hello-9.inst.hello.mesh.internal A", "NXDOMAIN"),
        ("_none._tcp.hello.mesh.internal SRV", "NXDOMAIN"),
        ("inst.nobody.mesh.internal A", "NXDOMAIN"),
    ] {
        let words = ["@127.0.0.1", "-p", &port].into_iter().chain(question.split(' '));
        let answer = finish(&dig, words).await.stdout;
        let plain = answer.split_whitespace().collect::<Vec<_>>().join(" "); // dig aligns by tabs
        assert!(plain.contains(want), "{question}: no `{want}` in\n{answer}");
        assert!(want.starts_with("IN") || plain.contains(" IN SOA "), "{question}: {answer}");
    }
}

/// Checks the answers that have come in so far, and counts them.
fn drain(socket: &tokio::net::UdpSocket) -> usize {
    let (mut count, mut buffer) = (0, [0; 4096]);
    while let Ok(len) = socket.try_recv(&mut buffer) {
        assert!(len <= 1232 && &buffer[..2] != b"RR", "{len} bytes: {:?}", &buffer[..len]);
        count += 1;
    }
    count
}
