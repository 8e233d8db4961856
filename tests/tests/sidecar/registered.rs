//! The registration of a living sidecar is its own.

use pillion_tests::support::process::finish_command;
use pillion_tests::support::{App, DEADLINE, Plan, Registry, Sidecar, eventually, peer};
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
