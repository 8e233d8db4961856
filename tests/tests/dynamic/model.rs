//! Long random sequences of changes: after each, both proxies run exactly what the control plane
//! shows, under the versions it gave, and route alike.
//!
//! `PILLION_STEPS` says how many changes, `PILLION_SEED` which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pillion_tests::support::App;
use serde_json::{Value, json};

use crate::ads::{Fleet, VARIANTS, ads};
use crate::resources::{CLUSTER, LISTENER, cluster, endpoints, listener, routes};
use crate::side::Side;

/// Clusters, and prefixes that routes know.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What the control plane shows.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Milliseconds to connect, and the applications behind, by name.
    clusters: BTreeMap<&'static str, (u32, BTreeSet<usize>)>,
    /// Prefix and cluster, of each route configuration.
    routes: BTreeMap<&'static str, Vec<(&'static str, &'static str)>>,
    /// The route configuration of the listener, and its revision.
    listener: Option<(&'static str, u32)>,
}

impl Model {
    fn new(random: &mut fastrand::Rng) -> Self {
        let mut model = Self { listener: Some(("main", 0)), ..Self::default() };
        model.routes.insert("main", vec![("/a", "a"), ("/b", "b")]);
        model.routes.insert("spare", vec![("/a", "b")]);
        (0..4).for_each(|_| model.step(random));
        model
    }

    /// One change.
    fn step(&mut self, random: &mut fastrand::Rng) {
        let name = NAMES[random.usize(..NAMES.len())];
        let some = |random: &mut fastrand::Rng| (0..3).filter(|_| random.bool()).collect::<BTreeSet<usize>>();
        match random.u32(..10) {
            0..=2 => drop(self.clusters.insert(name, (random.u32(1..4) * 1000, some(random)))),
            3 => drop(self.clusters.remove(name)),
            4 | 5 => {
                if let Some((_, behind)) = self.clusters.get_mut(name) {
                    *behind = some(random);
                }
            }
            6 | 7 => {
                let of = if random.bool() { "main" } else { "spare" };
                let to = || NAMES[random.usize(..NAMES.len())];
                let table = std::iter::repeat_with(to).take(3).collect::<Vec<_>>();
                self.routes.insert(of, ["/a", "/b", "/c"].into_iter().zip(table).collect());
            }
            8 => {
                let revision = self.listener.map_or(0, |(_, revision)| revision) + 1;
                let of = if random.bool() { "main" } else { "spare" };
                self.listener = Some((of, revision));
            }
            _ => self.listener = if self.listener.is_some() { None } else { Some(("main", 0)) },
        }
    }

    /// Everything that the control plane has.
    fn offered(&self, side: &Side, apps: &[SocketAddr]) -> Vec<Value> {
        let mut all = Vec::new();
        for (name, (timeout, behind)) in &self.clusters {
            all.push(cluster(name, &format!("{}s", timeout / 1000), &ads()));
            let behind: Vec<SocketAddr> = behind.iter().map(|at| apps[*at]).collect();
            all.push(endpoints(name, &behind));
        }
        all.extend(self.routes.iter().map(|(name, to)| routes(name, to)));
        if let Some((of, revision)) = self.listener {
            let mut web = listener("web", side.web, of, &ads());
            web["filter_chains"][0]["filters"][0]["typed_config"]["server_name"] =
                json!(format!("r{revision}"));
            all.push(web);
        }
        all
    }

    /// What of it is in use.
    fn used(&self, side: &Side, apps: &[SocketAddr]) -> Vec<Value> {
        let of = self.listener.map(|(of, _)| of);
        let is_used = |resource: &Value| {
            resource["@type"] != crate::resources::ROUTES || of.is_some_and(|of| resource["name"] == of)
        };
        self.offered(side, apps).into_iter().filter(is_used).collect()
    }

    /// What a request is answered with: a status, and who may answer.
    fn answer(&self, path: &str) -> (u16, BTreeSet<usize>) {
        let Some((of, _)) = self.listener else { return (0, BTreeSet::new()) };
        let Some((_, to)) = self.routes[of].iter().find(|(prefix, _)| *prefix == path) else {
            return (404, BTreeSet::new());
        };
        match self.clusters.get(to) {
            Some((_, behind)) if !behind.is_empty() => (200, behind.clone()),
            _ => (503, BTreeSet::new()),
        }
    }
}

/// The versions of what a proxy runs of a type, by name.
async fn versions(side: &Side, type_url: &str) -> BTreeMap<String, Value> {
    let dump = side.page("/config_dump").await.expect("a dump").json();
    let mut all = BTreeMap::new();
    for config in dump["configs"].as_array().into_iter().flatten() {
        let (states, resource) = match type_url {
            CLUSTER => (&config["dynamic_active_clusters"], "cluster"),
            _ => (&config["dynamic_route_configs"], "route_config"),
        };
        for state in states.as_array().into_iter().flatten() {
            let name = state[resource]["name"].as_str().unwrap_or_default().to_owned();
            all.insert(name, state["version_info"].clone());
        }
    }
    all
}

#[tokio::test]
async fn random_changes_lead_both_proxies_to_the_same_configuration() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let steps = number("PILLION_STEPS").unwrap_or(25);
    let seed = number("PILLION_SEED").unwrap_or_else(|| fastrand::u64(..));
    let names = ["zero", "one", "two"];
    let apps = [App::start("zero").await, App::start("one").await, App::start("two").await];
    let at: Vec<SocketAddr> = apps.iter().map(|app| app.address).collect();
    for variant in VARIANTS {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model = Model::new(&mut random);
        println!("{variant}: {steps} steps from PILLION_SEED={seed}");
        let fleet = Fleet::start(variant, |side| model.offered(side, &at)).await;
        for step in 0..steps {
            // By itself: Envoy refuses all of a response that has something wrong, and what of it was
            // right is not sent again.
            if step % 8 == 7 {
                refused(&fleet, &model, &at, random.bool()).await;
            }
            (0..random.usize(1..4)).for_each(|_| model.step(&mut random));
            fleet.set(|side| model.offered(side, &at));
            fleet.settled(|side| model.used(side, &at)).await;
            if let [one, other] = &fleet.sides[..] {
                // In the state of the world a version is that of a response: routes that a listener
                // of Envoy's still drains with have come in an earlier one.
                let routes = (variant == "DELTA_GRPC").then_some(crate::resources::ROUTES);
                for type_url in [CLUSTER].into_iter().chain(routes) {
                    let (mut one, other) = (versions(one, type_url).await, versions(other, type_url).await);
                    one.retain(|name, _| other.contains_key(name)); // a listener that drains keeps its routes
                    assert_eq!(one, other, "{variant}, step {step}, seed {seed}: versions of {type_url}");
                }
            }
            for side in &fleet.sides {
                let path = ["/a", "/b", "/c"][random.usize(..3)];
                let (status, who) = model.answer(path);
                side.eventually(
                    &format!("answers {path} as told, step {step}, seed {seed}"),
                    async |side: &Side| {
                        let page = side.get(path).await;
                        let (got, by) =
                            page.map_or((0, Value::Null), |page| (page.status, page.json()["name"].clone()));
                        let is_right = got == status && (got != 200 || who.iter().any(|at| by == names[*at]));
                        if is_right {
                            Ok(())
                        } else {
                            Err(format!("{got} by {by}, want {status} by {who:?}"))
                        }
                    },
                )
                .await;
            }
        }
    }
}

/// Shows both something that cannot be, beside what there is.
async fn refused(fleet: &Fleet, model: &Model, at: &[SocketAddr], is_listener: bool) {
    let (type_url, stat) = if is_listener {
        (LISTENER, "listener_manager.lds.update_rejected")
    } else {
        (CLUSTER, "cluster_manager.cds.update_rejected")
    };
    let mut before = Vec::new();
    for side in &fleet.sides {
        before.push(side.stat(stat).await);
    }
    fleet.set(|side| {
        let mut all = model.offered(side, at);
        all.push(if is_listener {
            let mut wrong = listener("wrong", side.web, "main", &ads());
            wrong["filter_chains"][0]["filters"][0]["typed_config"] =
                json!({"@type": CLUSTER, "name": "no filter"});
            wrong
        } else {
            cluster("wrong", "-1s", &ads())
        });
        all
    });
    for (side, before) in fleet.sides.iter().zip(before) {
        side.eventually(&format!("refuses a wrong {type_url}"), async |side: &Side| {
            let status = fleet.plane.status(side.node(), type_url).ok_or("no stream")?;
            match (side.stat(stat).await, status.last_error) {
                (count, Some(_)) if count > before => Ok(()),
                seen => Err(format!("{seen:?} after {before}")),
            }
        })
        .await;
    }
    // It goes last of all: until then what comes anew would come beside it, and Envoy refuse both.
    fleet.set(|side| model.offered(side, at));
    for side in &fleet.sides {
        side.eventually("takes what is right", async |side: &Side| {
            match fleet.plane.status(side.node(), type_url).ok_or("no stream")?.last_error {
                None => Ok(()),
                Some(error) => Err(error),
            }
        })
        .await;
    }
}
