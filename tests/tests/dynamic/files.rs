//! Resources in files.

use std::net::SocketAddr;

use pillion_tests::support::App;
use serde_json::{Value, json};

use crate::resources::{cluster, endpoints, listener, routes};
use crate::side::{Program, Side};

fn file(side: &Side, name: &str) -> Value {
    json!({"path_config_source": {"path": side.path(name)}, "resource_api_version": "V3"})
}

/// `/` goes to the cluster `to` with one endpoint.
fn write(side: &Side, to: &str, version: &str, address: SocketAddr) {
    side.replace_resources("eds.json", version, &[endpoints(to, &[address])]);
    side.replace_resources("cds.json", version, &[cluster(to, "1s", &file(side, "eds.json"))]);
    side.replace_resources("rds.json", version, &[routes("main", &[("/", to)])]);
    let web = listener("web", side.web, "main", &file(side, "rds.json"));
    side.replace_resources("lds.json", version, &[web]);
}

async fn started(to: &str, address: SocketAddr) -> Vec<Side> {
    let mut sides = Side::both();
    for side in &mut sides {
        write(side, to, "1", address);
        let dynamic = json!({"cds_config": file(side, "cds.json"), "lds_config": file(side, "lds.json")});
        side.start(json!({"dynamic_resources": dynamic})).await;
    }
    sides
}

async fn answers(side: &Side, name: &str) {
    side.eventually(&format!("answers by {name}"), async |side: &Side| {
        let page = side.get("/").await?;
        if page.json()["name"] == name { Ok(()) } else { Err(format!("{page:?}")) }
    })
    .await;
}

async fn counts(side: &Side, stat: &str, at_least: u64) {
    side.eventually(&format!("counts {stat}"), async |side: &Side| match side.stat(stat).await {
        got if got >= at_least => Ok(()),
        got => Err(format!("{got} of {at_least}")),
    })
    .await;
}

#[tokio::test]
async fn what_is_moved_into_place_takes_effect_and_what_is_wrong_changes_nothing() {
    let (one, two) = (App::start("one").await, App::start("two").await);
    for side in started("app", one.address).await {
        answers(&side, "one").await;

        // Endpoints alone, then another cluster altogether.
        side.replace_resources("eds.json", "2", &[endpoints("app", &[two.address])]);
        answers(&side, "two").await;
        side.replace_resources("rds.json", "3", &[routes("main", &[("/two", "app"), ("/", "nobody")])]);
        side.eventually("has no such cluster", async |side: &Side| {
            let status = (side.get("/").await?.status, side.get("/two").await?.status);
            if status == (503, 200) { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        side.replace_resources("rds.json", "4", &[routes("main", &[("/", "app")])]);
        answers(&side, "two").await;

        // Not JSON; then a cluster that cannot be, beside a new one that can.
        side.replace("cds.json", "{\"resources\": [\n");
        counts(&side, "cluster_manager.cds.update_failure", 1).await;
        let mut wrong = cluster("app", "1s", &file(&side, "eds.json"));
        wrong["connect_timeout"] = json!("-1s");
        side.replace_resources("cds.json", "5", &[wrong]);
        counts(&side, "cluster_manager.cds.update_rejected", 1).await;
        answers(&side, "two").await;
        if side.program == Program::Pillion {
            let said = side.output();
            for want in ["cds.json:2:", "cds.json:5:", "resources[0].connect_timeout"] {
                assert!(said.contains(want), "no `{want}` in {said}");
            }
        }

        // What is absent is gone, and the next good file is taken.
        side.replace_resources("lds.json", "6", &[]);
        side.eventually("has no listener", async |side: &Side| match side.get("/").await {
            Ok(page) => Err(format!("{page:?}")),
            Err(_refused) => Ok(()),
        })
        .await;
        write(&side, "other", "7", one.address);
        answers(&side, "one").await;
        assert_eq!(side.stat("listener_manager.lds.update_rejected").await, 0, "{}", side.output());
    }
}
