//! Names of other zones, which the registry asks others for.

use pillion_tests::support::ports::free_address;
use pillion_tests::support::process::{finish, run};
use pillion_tests::support::{DEADLINE, Registry, eventually, peer};
use tokio::net::UdpSocket;

/// One resolver is silent, the other a real Unbound: whoever asks notices neither.
#[tokio::test]
async fn names_of_other_zones_are_asked_for_elsewhere() {
    let (Some(dig), Some(unbound)) = (peer("dig"), peer("unbound")) else { return };
    let data = tempfile::tempdir().expect("a folder");
    let settings = "    local-zone: \"example.com.\" static
    local-data: \"www.example.com. 60 IN A 192.0.2.80\"
    local-data-ptr: \"192.0.2.80 www.example.com\"
    local-zone: \"mesh.internal.\" redirect
    local-data: \"mesh.internal. 60 IN A 192.0.2.66\"
";
    let (_unbound, port) = super::unbound::start(&unbound, data.path(), settings);
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let resolvers = format!("{},127.0.0.1:{port}", silent.local_addr().expect("bound"));
    let registry = Registry::start_with(data.path(), &["--dns-forward", &resolvers]).await;

    let server = registry.dns.port().to_string();
    let ask = async |words: &str| {
        let fixed = ["@127.0.0.1", "-p", &server, "+tries=1", "+time=5"];
        finish(&dig, fixed.into_iter().chain(words.split(' '))).await.stdout
    };
    eventually("Unbound's answer comes through", DEADLINE, || async {
        let answer = ask("+short www.example.com A").await;
        if answer.trim() == "192.0.2.80" { Ok(()) } else { Err(answer) }
    })
    .await;
    for (words, want) in [
        ("+tcp +short www.example.com A", "192.0.2.80"),
        ("+short -x 192.0.2.80", "www.example.com."),
        ("nobody.example.com A", "status: NXDOMAIN"),
        // Ours is never asked for elsewhere, whatever others would say.
        ("missing.mesh.internal A", "status: NXDOMAIN"),
        ("mesh.internal A", "ANSWER: 0"),
        // Whoever does not want others asked is not served.
        ("+norecurse www.example.com A", "status: REFUSED"),
    ] {
        let answer = ask(words).await;
        assert!(answer.contains(want), "{words}: {answer}");
    }
    let metrics = registry.get("/metrics").await.body;
    let line =
        metrics.lines().find(|line| line.starts_with("pillion_dns_forwarded_total ")).expect("a metric");
    let count: u64 = line.rsplit(' ').next().expect("a value").parse().expect("a number");
    assert!(count >= 4, "{line}");
}

#[tokio::test]
async fn a_registry_does_not_ask_itself() {
    let data = tempfile::tempdir().expect("a folder");
    let (data, dns) = (data.path().display().to_string(), free_address());
    let any = format!("0.0.0.0:{}", dns.port());
    for listen in [dns.to_string(), any] {
        let fixed = ["registry", "--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--data-dir", &data];
        let forward = dns.to_string();
        let arguments = fixed.into_iter().chain(["--dns", &listen, "--dns-forward", &forward]);
        let finished = run(arguments.collect::<Vec<_>>()).await;
        assert_eq!(finished.code, 2, "{finished:?}");
        assert!(finished.stderr.contains("is this registry's own DNS"), "{finished:?}");
    }
}
