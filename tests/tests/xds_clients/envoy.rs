//! Envoys of two versions, over both variants of the protocol, in one mesh.

use std::collections::BTreeMap;

use pillion_tests::support::{App, DEADLINE, Envoy, Plan, Registry, Sidecar, eventually, http, peer};

const ORDERS: &str = "orders.shop.mesh.internal";
const MESH: &str = "
kind: Service
name: orders
namespace: shop
ports: [{name: http, port: 80, protocol: http}]
subsets: {v1: {version: v1}, v2: {version: v2}}
---
kind: Route
name: canary
namespace: shop
to: orders
rules:
  - split: [{subset: v1, weight: 80}, {subset: v2, weight: 20}]
";

async fn instance(registry: &Registry, app: &App, name: &str, version: &str) -> Sidecar {
    let (port, label) = (app.address.port().to_string(), format!("version={version}"));
    Plan::new(registry.mesh, "orders.shop", &port).instance(name).with(&["--label", &label]).start().await
}

/// Who answers how many of `count` requests through an Envoy.
async fn ask(envoy: &Envoy, count: u32) -> Result<BTreeMap<String, u32>, String> {
    let mut names = BTreeMap::new();
    for _ in 0..count {
        let page = http::get(envoy.outbound, ORDERS, "/").await?;
        let name = page.json()["name"].as_str().map(str::to_owned);
        *names.entry(name.unwrap_or_else(|| format!("{} {}", page.status, page.body))).or_default() += 1;
    }
    Ok(names)
}

async fn reaches(envoys: &[(String, Envoy)], want: &[&str]) {
    for (which, envoy) in envoys {
        eventually(&format!("{which} reaches {want:?}"), DEADLINE, || async {
            let names = ask(envoy, 50).await?;
            let found: Vec<&str> = names.keys().map(String::as_str).collect();
            if found == want { Ok(()) } else { Err(format!("{names:?}\n{}", envoy.process.output())) }
        })
        .await;
    }
}

/// EDS updates taken, by cluster.
async fn updates(envoy: &Envoy) -> BTreeMap<String, u64> {
    envoy.stats("^cluster.outbound.*update_success$").await.into_iter().collect()
}

#[tokio::test]
async fn envoys_of_two_versions_obey_a_canary_follow_endpoints_and_come_back_after_a_restart() {
    let (Some(newer), Some(older)) = (peer("envoy"), peer("envoy-1.38")) else { return };
    let (data, files) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(data.path()).await;
    registry.apply(MESH).await;
    let names = ["one", "two", "three", "four"];
    let mut apps = Vec::new();
    for name in names {
        apps.push(App::start(name).await);
    }
    let _one = instance(&registry, &apps[0], "one", "v1").await;
    let two = instance(&registry, &apps[1], "two", "v2").await;
    registry.serving("orders.shop", 2).await;

    let mut envoys = Vec::new();
    for (version, program) in [("1.40", &newer), ("1.38", &older)] {
        for variant in ["DELTA_GRPC", "GRPC"] {
            let service = format!(
                "web-{}-{}.shop",
                version.replace('.', "-"),
                variant.to_lowercase().replace('_', "-")
            );
            let envoy = Envoy::join_by(variant, program, &registry, &service, None, files.path()).await;
            envoys.push((format!("Envoy {version} {variant}"), envoy));
        }
    }
    reaches(&envoys, &["one", "two"]).await;
    for (which, envoy) in &envoys {
        let split = ask(envoy, 500).await.expect("answers");
        println!("{which}: split 80 to 20 over 500 requests: {split:?}");
        assert!((350..450).contains(&split["one"]), "{which}: {split:?}");
    }

    // An instance more: one resource for each cluster that has it, and none for others.
    let mut before = Vec::new();
    for (_, envoy) in &envoys {
        before.push(updates(envoy).await);
    }
    registry.apply(&MESH.replace("weight: 80", "weight: 0")).await;
    reaches(&envoys, &["two"]).await;
    let three = instance(&registry, &apps[2], "three", "v2").await;
    reaches(&envoys, &["three", "two"]).await;
    for ((which, envoy), before) in envoys.iter().zip(before) {
        let after = updates(envoy).await;
        let grown: BTreeMap<&String, u64> = after
            .iter()
            .map(|(name, count)| (name, count - before.get(name).copied().unwrap_or_default()))
            .filter(|(_, more)| *more > 0)
            .collect();
        println!("{which}: EDS updates for one instance more: {grown:?}");
        assert!(grown.keys().all(|name| !name.contains("|v1|")), "{which}: {grown:?}");
        assert!(grown.keys().any(|name| name.contains("|v2|")), "{which}: {grown:?}");
    }

    let registry = registry.crash_and_restart().await;
    reaches(&envoys, &["three", "two"]).await;
    two.process.kill().await;
    reaches(&envoys, &["three"]).await;
    let _four = instance(&registry, &apps[3], "four", "v2").await;
    reaches(&envoys, &["four", "three"]).await;
    drop(three);
    for (which, envoy) in &envoys {
        let rejected = envoy.stats("update_rejected").await;
        assert!(rejected.iter().all(|(_, count)| *count == 0), "{which}: {rejected:?}");
    }
}
