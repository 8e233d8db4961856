//! A sidecar's names: what is answered, and what never is.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use pillion_tests::support::ports::free_port;
use pillion_tests::support::process::finish;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually, http, peer};

use super::apply;

const ORDERS: &str = "orders.default.mesh.internal";

/// The address of a name, or the answer's status.
async fn ask(dig: &Path, sidecar: &Sidecar, name: &str) -> Result<Ipv4Addr, String> {
    let port = sidecar.dns.port().to_string();
    let answer = finish(dig, ["@127.0.0.1", "-p", &port, "+tries=1", "+time=5", name, "A"]).await.stdout;
    let rows = answer.lines().filter(|line| !line.starts_with(';'));
    let found = rows.filter_map(|line| line.rsplit(['\t', ' ']).next()?.parse().ok()).next();
    found.ok_or_else(|| {
        let status = answer.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        status.unwrap_or(&answer).to_owned()
    })
}

/// Everything listens on 8080: caller and callee have the same port.
#[tokio::test]
async fn the_callers_own_port_is_shared_where_that_is_safe_and_else_not_answered() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let (port, app) = (free_port(), App::start("orders").await);
    let port_text = port.to_string();
    let service = format!(
        "kind: Service\nname: orders\nports: [{{name: http, port: {port}, targetPort: {}, protocol: http}}]\n",
        app.port()
    );
    apply(&registry, &service).await;
    let _orders = Sidecar::beside(&registry, "orders.default", app.address).await;

    let web = Plan::new(registry.mesh, "web.default", &port_text).start().await;
    let refused = ask(&dig, &web, ORDERS).await;
    assert_eq!(refused, Err("SERVFAIL".to_owned()), "its own application may want every address");
    web.process.line("the reason", |line| line.contains("does not listen yet").then_some(())).await;

    let everywhere = TcpListener::bind(("0.0.0.0", port)).expect("the sidecar has left it free");
    let names = eventually("the reason is shown", DEADLINE, || async {
        let refused = ask(&dig, &web, ORDERS).await;
        assert_eq!(refused, Err("SERVFAIL".to_owned()), "it would reach the caller itself");
        let names = http::get(web.admin, "admin", "/names").await?.body;
        if names.contains("listens on port") { Ok(names) } else { Err(names) }
    })
    .await;
    assert!(names.contains(ORDERS), "{names}");
    let page = web.get_until(&format!("{ORDERS}:{port}"), "/", 200).await;
    assert_eq!(page.json()["name"], "orders", "{page:?}");
    let said = web.process.output();
    assert_eq!(said.matches("would get the calls itself").count(), 1, "said once: {said}");
    drop(everywhere);

    let _own = TcpListener::bind(("127.0.0.1", port)).expect("free again");
    let address = eventually("the name is answered", DEADLINE, || ask(&dig, &web, ORDERS)).await;
    let page = http::get((address, port).into(), ORDERS, "/").await.expect("answered");
    assert_eq!((page.status, &page.json()["name"]), (200, &"orders".into()), "{page:?}");
}
