//! A sidecar's names: what is answered, and what never is.

use std::net::TcpListener;

use pillion_tests::support::{DEADLINE, Registry, eventually, http, peer};

use super::support::{Orders, Sidecar, apply, free_port};

const ORDERS: &str = "orders.mesh.internal";

/// Everything listens on 8080: caller and callee have the same port.
#[tokio::test]
async fn the_callers_own_port_is_shared_where_that_is_safe_and_else_not_answered() {
    let Some(dig) = peer("dig") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let port = free_port();
    let target = Orders::start(&registry).await;
    let orders = format!(
        "kind: Service\nname: orders\nports: [{{name: http, port: {port}, targetPort: {}, protocol: http}}]\n",
        target.port
    );
    apply(&registry, &orders).await;

    let web = Sidecar::start(&registry, "web", port, &[]).await;
    let refused = web.dig(&dig, ORDERS).await;
    assert_eq!(refused, Err("SERVFAIL".to_owned()), "its own application may want every address");
    web.process.line("the reason", |line| line.contains("does not listen yet").then_some(())).await;

    let everywhere = TcpListener::bind(("0.0.0.0", port)).expect("the sidecar has left it free");
    let names = eventually("the reason is shown", DEADLINE, || async {
        let refused = web.dig(&dig, ORDERS).await;
        assert_eq!(refused, Err("SERVFAIL".to_owned()), "it would reach the caller itself");
        let names = http::get(web.admin, "admin", "/names").await?.body;
        if names.contains("listens on port") { Ok(names) } else { Err(names) }
    })
    .await;
    assert!(names.contains(ORDERS), "{names}");
    let page = http::get(web.outbound, &format!("{ORDERS}:{port}"), "/").await.expect("answered");
    assert_eq!((page.status, page.json()["service"].as_str()), (200, Some("orders")), "{page:?}");
    let said = web.process.output();
    assert_eq!(said.matches("would get the calls itself").count(), 1, "said once: {said}");
    drop(everywhere);

    let _own = TcpListener::bind(("127.0.0.1", port)).expect("free again");
    let address = eventually("the name is answered", DEADLINE, || web.dig(&dig, ORDERS)).await;
    let page = http::get((address, port).into(), ORDERS, "/").await.expect("answered");
    assert_eq!((page.status, page.json()["service"].as_str()), (200, Some("orders")), "{page:?}");
    drop(target.sidecar);
}
