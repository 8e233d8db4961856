//! Services too large for a datagram, and how soon a registration is seen.

use std::collections::BTreeSet;
use std::time::Duration;

use pillion_tests::support::process::finish;
use pillion_tests::support::{DEADLINE, Registry, eventually, peer};
use serde_json::json;
use tokio::time::Instant;

const CROWD: usize = 1000;
const NAME: &str = "crowd.shop.mesh.internal";
/// How soon an acknowledged registration must be in DNS: far above what it takes, for busy machines.
const VISIBLE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_thousand_instances_are_complete_over_tcp_and_cut_exactly_over_udp() {
    let (Some(dig), Some(kdig)) = (peer("dig"), peer("kdig")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let all: Vec<usize> = (0..CROWD).collect();
    for some in all.chunks(20) {
        let one = async |at: &usize| {
            let body =
                json!({"address": format!("10.1.{}.{}", at / 250, at % 250), "port": 8080, "ttl": "1h"});
            let path = format!("/v1/namespaces/shop/services/crowd/instances/crowd-{at}");
            let answer = registry.put(&path, &body).await;
            assert_eq!(answer.status, 201, "{answer:?}");
        };
        futures(some.iter().map(one)).await;
    }
    let port = registry.dns.port().to_string();
    let ask = async |program, words: &str| {
        finish(program, ["@127.0.0.1", "-p", &port].into_iter().chain(words.split(' '))).await.stdout
    };
    eventually("everybody is in DNS over TCP", DEADLINE, || async {
        for program in [&dig, &kdig] {
            let answer = ask(program, &format!("+tcp +short {NAME} A")).await;
            let found: BTreeSet<&str> = answer.lines().collect();
            if found.len() != CROWD {
                return Err(format!("{} addresses", found.len()));
            }
        }
        Ok(())
    })
    .await;
    // 12 bytes of header, 30 of question, 11 of OPT, and 16 for each address.
    for (size, fit) in [(512, 28), (1232, 73)] {
        for (program, words) in [(&dig, "+ignore +nocookie"), (&kdig, "+ignore")] {
            let answer = ask(program, &format!("{words} +bufsize={size} {NAME} A")).await;
            let plain = answer.split_whitespace().collect::<Vec<_>>().join(" ");
            let found = plain.matches(" IN A 10.1.").count();
            let cut = plain.contains(" tc ") || plain.contains(" tc;");
            assert!(found == fit && cut, "{program:?}: {found} of {fit} at {size}:\n{answer}");
        }
    }
    // Left to itself, dig asks again over TCP.
    let answer = ask(&dig, &format!("+short {NAME} A")).await;
    assert_eq!(answer.lines().filter(|line| line.starts_with("10.1.")).count(), CROWD);
}

#[tokio::test]
async fn a_registration_is_in_dns_soon() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let port = registry.dns.port().to_string();
    for at in 0..10 {
        let name = format!("new-{at}.shop.mesh.internal");
        let words = ["@127.0.0.1", "-p", &port, "+short", &name, "A"];
        // Denied before: nothing that was answered may linger.
        assert_eq!(finish(&dig, words).await.stdout.trim(), "");
        let path = format!("/v1/namespaces/shop/services/new-{at}/instances/one");
        let answer = registry.put(&path, &json!({"address": "10.0.0.5", "port": 8080})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let acknowledged = Instant::now();
        eventually("it is in DNS", VISIBLE, || async {
            let answer = finish(&dig, words).await.stdout;
            if answer.trim() == "10.0.0.5" { Ok(()) } else { Err(answer) }
        })
        .await;
        println!("seen {:?} after the acknowledgement, with dig's own start", acknowledged.elapsed());
    }
}

/// Waits for all of a few.
async fn futures(all: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
