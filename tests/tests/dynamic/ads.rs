//! Resources over ADS, from one control plane, for both proxies.

use std::collections::BTreeMap;
use std::sync::Arc;

use pillion_tests::support::ports::free_address;
use pillion_tests::support::{App, Load};
use serde_json::{Value, json};

use crate::resources::{CLUSTER, LISTENER, cluster, endpoints, listener, routes, socket};
use crate::server::{ControlPlane, World};
use crate::side::{Program, Side};

/// Clusters renamed unless `PILLION_RENAMES` says how many.
const RENAMES: usize = 50;

/// Which variant of the protocol.
pub(crate) const VARIANTS: [&str; 2] = ["DELTA_GRPC", "GRPC"];

pub(crate) fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

/// Proxies that follow one control plane.
pub(crate) struct Fleet {
    pub(crate) world: Arc<World>,
    pub(crate) plane: ControlPlane,
    pub(crate) sides: Vec<Side>,
}

impl Fleet {
    /// Starts all, with what `show` gives each to begin with.
    pub(crate) async fn start(variant: &str, show: impl Fn(&Side) -> Vec<Value>) -> Self {
        let world = Arc::<World>::default();
        let plane = ControlPlane::start(free_address(), &world);
        let mut sides = Side::both();
        for side in &mut sides {
            world.set(side.node(), &show(side));
            side.start(bootstrap(variant, &plane)).await;
        }
        Self { world, plane, sides }
    }

    /// Shows each what `show` gives.
    pub(crate) fn set(&self, show: impl Fn(&Side) -> Vec<Value>) {
        self.sides.iter().for_each(|side| self.world.set(side.node(), &show(side)));
    }

    /// Another cluster takes the place of one: first it is there, then routes go to it, then the old
    /// one goes.
    async fn rename(&self, old: (&str, &App), new: (&str, &App)) {
        for to in [old.0, new.0] {
            self.set(|side| both(side, old, new, to));
            self.settled(|side| both(side, old, new, to)).await;
        }
        self.set(|side| web(side, new.0, new.1));
        self.settled(|side| web(side, new.0, new.1)).await;
    }

    /// Waits until each runs exactly what `show` gives.
    pub(crate) async fn settled(&self, show: impl Fn(&Side) -> Vec<Value>) {
        for side in &self.sides {
            let want = Effective::of(&show(side));
            side.eventually("runs what it was told", async |side: &Side| {
                let mut have = Effective::dumped(side).await?;
                if side.program == Program::Envoy {
                    // A listener that drains keeps its routes.
                    have.routes.retain(|name, _| want.routes.contains_key(name));
                }
                if have == want { Ok(()) } else { Err(format!("has {have:#?}\nwant {want:#?}")) }
            })
            .await;
        }
    }
}

fn bootstrap(variant: &str, plane: &ControlPlane) -> Value {
    let options = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    json!({
        "dynamic_resources": {
            "ads_config": {
                "api_type": variant,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "plane"}}],
            },
            "cds_config": ads(),
            "lds_config": ads(),
        },
        "static_resources": {"clusters": [{
            "name": "plane",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options,
            },
            "load_assignment": {"cluster_name": "plane", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": socket(plane.address)}},
            ]}]},
        }]},
    })
}

/// What is in effect.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Effective {
    listeners: BTreeMap<String, Value>,
    clusters: BTreeMap<String, Value>,
    routes: BTreeMap<String, Value>,
    /// Addresses by cluster.
    endpoints: BTreeMap<String, Vec<String>>,
}

impl Effective {
    /// What resources should lead to.
    pub(crate) fn of(resources: &[Value]) -> Self {
        let mut effective = Self::default();
        for resource in resources {
            let name = resource["name"].as_str().unwrap_or_default().to_owned();
            match resource["@type"].as_str() {
                Some(LISTENER) => drop(effective.listeners.insert(name, resource.clone())),
                Some(CLUSTER) => drop(effective.clusters.insert(name, resource.clone())),
                Some(crate::resources::ROUTES) => drop(effective.routes.insert(name, resource.clone())),
                _ => {
                    let name = resource["cluster_name"].as_str().unwrap_or_default().to_owned();
                    effective.endpoints.insert(name, addresses(resource));
                }
            }
        }
        effective
    }

    /// What a proxy says that it runs; an error while anything warms.
    pub(crate) async fn dumped(side: &Side) -> Result<Self, String> {
        let dump = side.page("/config_dump?include_eds").await?.json();
        let mut effective = Self::default();
        for config in dump["configs"].as_array().ok_or_else(|| format!("no configs in {dump}"))? {
            if let Some(warming) = list(&config["dynamic_warming_clusters"]).next() {
                return Err(format!("warms {warming}"));
            }
            for cluster in list(&config["dynamic_active_clusters"]) {
                named(&mut effective.clusters, &cluster["cluster"]);
            }
            for listener in list(&config["dynamic_listeners"]) {
                if !listener["warming_state"].is_null() {
                    return Err(format!("warms {listener}"));
                }
                if !listener["active_state"].is_null() {
                    named(&mut effective.listeners, &listener["active_state"]["listener"]);
                }
            }
            for routes in list(&config["dynamic_route_configs"]) {
                named(&mut effective.routes, &routes["route_config"]);
            }
            for endpoints in list(&config["dynamic_endpoint_configs"]) {
                let endpoints = &endpoints["endpoint_config"];
                let name = endpoints["cluster_name"].as_str().unwrap_or_default().to_owned();
                effective.endpoints.insert(name, addresses(endpoints));
            }
        }
        Ok(effective)
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn named(all: &mut BTreeMap<String, Value>, resource: &Value) {
    all.insert(resource["name"].as_str().unwrap_or_default().to_owned(), resource.clone());
}

fn addresses(assignment: &Value) -> Vec<String> {
    let endpoints = list(&assignment["endpoints"]).flat_map(|group| list(&group["lb_endpoints"]));
    let mut all: Vec<String> = endpoints
        .map(|endpoint| endpoint["endpoint"]["address"]["socket_address"]["port_value"].to_string())
        .collect();
    all.sort();
    all
}

/// Two clusters, and a web whose `/` goes to the cluster `to`.
fn both(side: &Side, old: (&str, &App), new: (&str, &App), to: &str) -> Vec<Value> {
    let mut all = web(side, old.0, old.1);
    all.extend([cluster(new.0, "1s", &ads()), endpoints(new.0, &[new.1.address])]);
    all[3] = routes("main", &[("/", to)]);
    all
}

/// A web whose `/` goes to the cluster `to`, which is at `app`.
fn web(side: &Side, to: &str, app: &App) -> Vec<Value> {
    vec![
        cluster(to, "1s", &ads()),
        endpoints(to, &[app.address]),
        listener("web", side.web, "main", &ads()),
        routes("main", &[("/", to)]),
    ]
}

#[tokio::test]
async fn what_is_refused_is_said_and_what_was_there_goes_on_through_restarts_and_resets() {
    let (one, two) = (App::start("one").await, App::start("two").await);
    for variant in VARIANTS {
        let mut fleet = Fleet::start(variant, |side| web(side, "app", &one)).await;
        fleet.settled(|side| web(side, "app", &one)).await;
        let loads: Vec<Load> = fleet.sides.iter().map(|side| Load::start(side.web, "web", 100)).collect();

        // A cluster that cannot be, then one that can.
        let wrong = |side: &Side| {
            let mut all = web(side, "app", &one);
            all[0]["connect_timeout"] = json!("-1s");
            all
        };
        fleet.set(wrong);
        for side in &fleet.sides {
            side.eventually("refuses the cluster", async |side: &Side| {
                let status = fleet.plane.status(side.node(), CLUSTER).ok_or("no stream")?;
                let error = status.last_error.unwrap_or_default();
                let named = side.program == Program::Envoy || error.contains("app: connect_timeout:");
                if status.nacks > 0 && named { Ok(()) } else { Err(format!("{} {error}", status.nacks)) }
            })
            .await;
            assert!(side.stat("cluster_manager.cds.update_rejected").await > 0);
        }
        let right = |side: &Side| {
            let mut all = web(side, "app", &two);
            all[0]["connect_timeout"] = json!("2s");
            all
        };
        fleet.set(right);
        fleet.settled(right).await;

        // A stream that is reset, and a server that is killed and comes back with news.
        fleet.sides.iter().for_each(|side| fleet.world.cut(side.node()));
        fleet.set(|side| web(side, "app", &one));
        fleet.settled(|side| web(side, "app", &one)).await;
        let address = fleet.plane.address;
        fleet.plane.kill(&fleet.world).await;
        for side in &fleet.sides {
            side.eventually("has lost the control plane", async |side: &Side| {
                match side.stat("control_plane.connected_state").await {
                    0 => Ok(()),
                    _ => Err("connected".to_owned()),
                }
            })
            .await;
        }
        let news = |side: &Side| both(side, ("app", &one), ("other", &two), "app");
        fleet.set(news);
        fleet.plane = ControlPlane::start(address, &fleet.world);
        fleet.settled(news).await;
        fleet.rename(("app", &one), ("other", &two)).await;
        for (side, load) in fleet.sides.iter().zip(loads) {
            let tally = load.stop().await;
            println!("{variant} {:?}: {} requests, {:?}", side.program, tally.sent, tally.failures);
            tally.expect_no_failure();
        }
    }
}

/// How a cluster is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rename {
    /// One step after the other.
    InSteps,
    /// The old one is gone, the new one is there, and routes go to it: all in one change.
    AtOnce,
}

async fn rename_under_load(how: Rename) {
    let renames = std::env::var("PILLION_RENAMES").map_or(RENAMES, |count| count.parse().expect("a number"));
    let app = App::start("app").await;
    for variant in VARIANTS {
        let fleet = Fleet::start(variant, |side| web(side, "app-0", &app)).await;
        fleet.settled(|side| web(side, "app-0", &app)).await;
        let loads: Vec<Load> = fleet.sides.iter().map(|side| Load::start(side.web, "web", 100)).collect();
        for number in 1..=renames {
            let (old, name) = (format!("app-{}", number - 1), format!("app-{number}"));
            if how == Rename::InSteps {
                fleet.rename((&old, &app), (&name, &app)).await;
                continue;
            }
            fleet.set(|side| web(side, &name, &app));
            fleet.settled(|side| web(side, &name, &app)).await;
        }
        for (side, load) in fleet.sides.iter().zip(loads) {
            let tally = load.stop().await;
            println!(
                "{variant} {:?} {how:?}: {renames} renames, {} requests, {:?}, slowest {:?}",
                side.program, tally.sent, tally.failures, tally.slowest
            );
            tally.expect_no_failure();
        }
    }
}

#[tokio::test]
async fn clusters_are_renamed_under_load() {
    rename_under_load(Rename::InSteps).await;
}

#[tokio::test]
async fn clusters_are_renamed_in_one_change_under_load() {
    rename_under_load(Rename::AtOnce).await;
}

#[tokio::test]
async fn a_bad_cluster_delays_nothing_that_needs_only_good_ones_and_is_not_sent_again() {
    let (one, two) = (App::start("one").await, App::start("two").await);
    for variant in VARIANTS {
        let fleet = Fleet::start(variant, |side| web(side, "app", &one)).await;
        fleet.settled(|side| web(side, "app", &one)).await;
        fleet.set(|side| {
            let mut all = both(side, ("app", &one), ("other", &two), "other");
            let mut wrong = cluster("wrong", "1s", &ads());
            wrong["eds_cluster_config"] = Value::Null;
            all.push(wrong);
            all
        });
        for side in &fleet.sides {
            side.eventually("goes to the good cluster", async |side: &Side| {
                let page = side.get("/").await?;
                if page.json()["name"] == "two" { Ok(()) } else { Err(format!("{page:?}")) }
            })
            .await;
            let refused = side
                .eventually("has refused the bad one", async |side: &Side| {
                    let status = fleet.plane.status(side.node(), CLUSTER).ok_or("no stream")?;
                    if status.refused == 1 { Ok(status) } else { Err(format!("{status:?}")) }
                })
                .await;
            for _ in 0..20 {
                side.get("/").await.expect("an answer");
            }
            let later = fleet.plane.status(side.node(), CLUSTER).expect("a stream");
            assert_eq!(later.pushes, refused.pushes, "{variant} {:?}: {later:?}", side.program);
        }
    }
}
