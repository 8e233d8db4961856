//! A local port per dependency.

use pillion_tests::support::process::run;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A TCP service that greets.
async fn greeter() -> (std::net::SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"hello").await; // the test sees what is missing
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn http_and_tcp_services_have_local_ports() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let (greeter, _greeting) = greeter().await;
    let _orders = Sidecar::beside(&registry, "orders.shop", app.address).await;
    let database = Plan::new(registry.mesh, "db.shop", &format!("{}:tcp", greeter.port()));
    let _database = database.start().await;
    registry.serving("db.shop", 1).await;
    let orders = format!("orders.shop:{}", app.port());
    let db = format!("db.shop:{}", greeter.port());
    let web = Plan::caller(registry.mesh, "web.shop")
        .with(&["--upstream", &format!("0={orders}"), "--upstream", &format!("0={db}")])
        .start()
        .await;
    let orders = web.process.bound(&format!("upstream {orders}")).await;
    let page = http::get(orders, "whatever", "/x").await.expect("answered");
    assert_eq!((page.status, &page.json()["name"]), (200, &"orders".into()), "{page:?}");
    assert_eq!(page.json()["caller"], "spiffe://mesh.internal/ns/shop/svc/web", "{page:?}");
    let db = web.process.bound(&format!("upstream {db}")).await;
    eventually("the TCP service greets", DEADLINE, || async {
        let mut stream = TcpStream::connect(db).await.map_err(|error| error.to_string())?;
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).await.map_err(|error| error.to_string())?;
        if greeting == "hello" { Ok(()) } else { Err(format!("{greeting:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_taken_local_port_is_told_with_its_flag() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let upstream = format!("{}=orders.shop", address.port());
    let plan = Plan::caller(registry.mesh, "web.shop").with(&["--upstream", &upstream]);
    let finished = run(plan.arguments()).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    for want in [&*address.to_string(), "is taken", "--upstream"] {
        assert!(finished.stderr.contains(want), "no `{want}` in {finished:?}");
    }
}
