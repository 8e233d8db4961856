//! Behind a resolver we did not write.

use std::path::Path;

use pillion_tests::support::ports::free_port;
use pillion_tests::support::process::{Process, finish};
use pillion_tests::support::{DEADLINE, Registry, eventually, peer};
use serde_json::json;

/// Starts Unbound on a port of 127.0.0.1, with these settings beside what every test needs.
pub(crate) fn start(unbound: &Path, folder: &Path, settings: &str) -> (Process, u16) {
    let (port, file, folder) = (free_port(), folder.join("unbound.conf"), folder.display());
    let text = format!(
        "remote-control:
    control-enable: no
server:
    num-threads: 1
    interface: 127.0.0.1@{port}
    username: \"\"
    chroot: \"\"
    directory: \"{folder}\"
    pidfile: \"{folder}/unbound.pid\"
    use-syslog: no
{settings}"
    );
    std::fs::write(&file, text).expect("written");
    let arguments = ["-d", "-c", &file.display().to_string()].map(str::to_owned);
    (Process::program("unbound", unbound, arguments), port)
}

/// Unbound forwards to us with the case of names mixed at random, believes only answers in that case,
/// and keeps a "no" for as long as the SOA beside it says.
#[tokio::test]
async fn unbound_forwards_with_mixed_case_and_keeps_what_is_denied() {
    let (Some(dig), Some(unbound)) = (peer("dig"), peer("unbound")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let put = async |service: &str| {
        let path = format!("/v1/namespaces/shop/services/{service}/instances/one");
        let answer = registry.put(&path, &json!({"address": "10.0.0.5", "port": 8080})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    };
    put("orders").await;
    let settings = format!(
        "    module-config: \"iterator\"
    do-not-query-localhost: no
    use-caps-for-id: yes
    local-zone: \"10.in-addr.arpa.\" nodefault
forward-zone:
    name: \"mesh.internal.\"
    forward-addr: 127.0.0.1@{}
",
        registry.dns.port()
    );
    let (_unbound, port) = start(&unbound, data.path(), &settings);
    let port = port.to_string();
    let ask = async |words: &str| {
        let fixed = ["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"];
        finish(&dig, fixed.into_iter().chain(words.split(' '))).await.stdout
    };
    eventually("unbound answers what we say", DEADLINE, || async {
        let answer = ask("+short orders.shop.mesh.internal A").await;
        if answer.trim() == "10.0.0.5" { Ok(()) } else { Err(answer) }
    })
    .await;
    let answer = ask("_http._tcp.orders.shop.mesh.internal SRV").await;
    assert!(answer.contains("8080 one.inst.orders.shop.mesh.internal."), "{answer}");

    let denied = async || {
        let metrics = registry.get("/metrics").await.body;
        let line = "pillion_dns_answers_total{code=\"nxdomain\"} ";
        let count = metrics.lines().find_map(|found| found.strip_prefix(line)?.parse::<u64>().ok());
        count.expect("counted")
    };
    let before = denied().await;
    for _ in 0..5 {
        let answer = ask("later.shop.mesh.internal A").await;
        assert!(answer.contains("status: NXDOMAIN") && answer.contains("SOA"), "{answer}");
    }
    let asked = denied().await - before;
    assert!((1..5).contains(&asked), "unbound asked {asked} times for one name that is not there");
    put("later").await;
    eventually("the no has run out", DEADLINE, || async {
        let answer = ask("+short later.shop.mesh.internal A").await;
        if answer.trim() == "10.0.0.5" { Ok(()) } else { Err(answer) }
    })
    .await;
}
