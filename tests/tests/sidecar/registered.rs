//! The registration of a living sidecar is its own.

use pillion_tests::support::process::finish_command;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually, peer};
use rustix::process::Signal;
use serde_json::json;

#[tokio::test]
async fn nobody_else_puts_another_address_in_its_place() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let _orders = Plan::new(registry.mesh, "orders.shop", &app.port()).instance("orders-1").start().await;
    registry.serving("orders.shop", 1).await;
    let path = "/v1/namespaces/shop/services/orders/instances/orders-1";
    let refused = registry.put(path, &json!({"address": "10.9.9.9", "port": 80})).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.body.contains("is registered by its sidecar"), "{refused:?}");
    let web = Sidecar::caller(&registry, "web.shop").await;
    web.get_until(&format!("orders.shop.mesh.internal:{}", app.port()), "/", 200).await;
}

#[tokio::test]
async fn deleted_while_it_lives_it_registers_again() {
    let Some(curl) = peer("curl") else { return };
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let app = App::start("orders").await;
    let plan =
        Plan::new(registry.mesh, "orders.shop", &app.port()).instance("orders-1").with(&["--ttl", "2"]);
    let orders = plan.start().await;
    registry.serving("orders.shop", 1).await;
    let mut delete = tokio::process::Command::new(&curl);
    let url = format!("http://{}/v1/namespaces/shop/services/orders/instances/orders-1", registry.api);
    delete.args(["-sf", "-X", "DELETE", &url]);
    let deleted = finish_command(delete).await;
    assert_eq!(deleted.code, 0, "{deleted:?}");
    eventually("the sidecar says that it registers again", DEADLINE, || async {
        let said = orders.process.output();
        if said.contains("registering again") { Ok(()) } else { Err(said) }
    })
    .await;
    registry.serving("orders.shop", 1).await;
    let web = Sidecar::caller(&registry, "web.shop").await;
    web.get_until(&format!("orders.shop.mesh.internal:{}", app.port()), "/", 200).await;
}

#[tokio::test]
async fn whose_id_another_takes_goes_on_and_says_so_and_has_it_again_when_it_is_free() {
    let data = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(data.path()).await;
    let (app, other) = (App::start("orders").await, App::start("other").await);
    let plan = |app: &App| {
        let plan = Plan::new(registry.mesh, "orders.shop", &app.port());
        plan.instance("orders-1").with(&["--ttl", "2"])
    };
    let mut first = plan(&app).start().await;
    registry.serving("orders.shop", 1).await;
    let path = "/v1/namespaces/shop/services/orders/instances/orders-1";
    let inbound = async || registry.get(path).await.json()["inboundPort"].as_u64();
    assert_eq!(inbound().await, Some(first.inbound.port().into()));
    let mut second = plan(&other).start().await;
    let taken = async |port: u16| {
        eventually(&format!("it is registered at {port}"), DEADLINE, || async {
            let found = inbound().await;
            if found == Some(port.into()) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    taken(second.inbound.port()).await;
    let told = |line: &str| line.contains("this one goes on unregistered").then_some(());
    first.process.line("that its id is taken", told).await;
    assert!(!first.process.has_ended() && !second.process.has_ended());
    first.ready().await;
    // What the first says now changes nothing about the second.
    taken(second.inbound.port()).await;
    second.process.signal(Signal::TERM);
    assert!(second.process.exit(DEADLINE).await.success(), "{}", second.process.output());
    taken(first.inbound.port()).await;
}
