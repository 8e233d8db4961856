//! What of the dynamic configuration is shown: `/config_dump` and `/stats`, as Envoy shows it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use bytes::Bytes;
use pillion_model::http::RouteSource;
use pillion_model::listener::{Listener, Terminal};
use pillion_xds::ads::Encoded;
use pillion_xds::encode::{Dialect, encode_cluster, encode_listener};
use pillion_xds::json::to_json;
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SECRET};
use serde_json::{Map, Value, json};

use super::kind::{Entry, Held};
use super::leaf::{Counts, Leaf, Refusal};
use super::state::State;
use super::worker::Shared;

impl Shared {
    /// `configs` of `/config_dump`; endpoints only if they are asked for, as in Envoy.
    pub(crate) fn configs(&self, with_endpoints: bool) -> Value {
        let state = self.state();
        let mut all = vec![clusters(&state), listeners(&state), routes(&state), secrets(&state)];
        if with_endpoints {
            all.insert(1, endpoints(&state));
        }
        Value::Array(all)
    }

    /// Statistics: the cluster or connection manager they are of, if any, the name and the value.
    pub(crate) fn stats(&self) -> Vec<(StatOf, String, u64)> {
        let state = self.state();
        let (clusters, listeners) = (&state.clusters, &state.listeners);
        let mut all: Vec<(StatOf, String, u64)> = Vec::new();
        let mut add = |of: StatOf, prefix: &str, counts: &Counts| {
            for (name, value) in [
                ("update_attempt", counts.update_attempt),
                ("update_success", counts.update_success),
                ("update_rejected", counts.update_rejected),
                ("update_failure", counts.update_failure),
                ("init_fetch_timeout", counts.init_fetch_timeout),
            ] {
                all.push((of.clone(), format!("{prefix}{name}"), value));
            }
        };
        add(StatOf::Server, "cluster_manager.cds.", &clusters.counts);
        add(StatOf::Server, "listener_manager.lds.", &listeners.counts);
        let managers = managers(&state);
        for ((type_url, key), leaf) in &state.leaves {
            match *type_url {
                ENDPOINTS => add(StatOf::Cluster(leaf.name.clone()), "", &leaf.counts),
                SECRET => add(StatOf::Server, &format!("sds.{}.", leaf.name), &leaf.counts),
                _ => {
                    let prefix = managers.get(key).cloned().unwrap_or_default();
                    add(StatOf::Http(prefix), &format!("rds.{}.", leaf.name), &leaf.counts);
                }
            }
        }
        for (name, value) in [
            ("control_plane.connected_state", u64::from(self.is_connected.load(Relaxed))),
            ("cluster_manager.cluster_added", clusters.counts.added),
            ("cluster_manager.cluster_modified", clusters.counts.modified),
            ("cluster_manager.cluster_removed", clusters.counts.removed),
            ("cluster_manager.warming_clusters", clusters.warming()),
            ("listener_manager.listener_added", listeners.counts.added),
            ("listener_manager.listener_modified", listeners.counts.modified),
            ("listener_manager.listener_removed", listeners.counts.removed),
            ("listener_manager.total_listeners_warming", listeners.warming()),
        ] {
            all.push((StatOf::Server, name.to_owned(), value));
        }
        all
    }
}

/// What a statistic is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StatOf {
    Server,
    /// By name.
    Cluster(String),
    /// A connection manager, by its prefix.
    Http(String),
}

/// Prefixes of the connection managers that name routes, by what the model calls these.
fn managers(state: &State) -> BTreeMap<String, String> {
    let listeners = state.listeners.entries.values().flat_map(|it| it.active.iter().chain(&it.warming));
    let chains =
        listeners.flat_map(|held| held.value.filter_chains.iter().chain(&held.value.default_filter_chain));
    let named = chains.filter_map(|chain| match &chain.terminal {
        Terminal::Http(http) => match &http.routes {
            RouteSource::Rds(key) => Some((key.clone(), http.stat_prefix.clone())),
            RouteSource::Inline(_) => None,
        },
        Terminal::Tcp(_) => None,
    });
    named.collect()
}

fn clusters(state: &State) -> Value {
    let all = &state.clusters;
    let shown = |name: &String, held: &Held<_>| json!({"version_info": held.version, "cluster": resource(CLUSTER, &held.body, name), "last_updated": time(held.updated)});
    let (mut statics, mut active, mut warming) = (Vec::new(), Vec::new(), Vec::new());
    for (name, entry) in &all.entries {
        if entry.is_static {
            let held = entry.active.as_ref().or(entry.warming.as_ref());
            let encoded = held.map(|held| json(to_json(&encode_cluster(&held.value, Dialect::Pillion).body)));
            statics.push(json!({ "cluster": encoded }));
            continue;
        }
        active.extend(entry.active.iter().map(|held| with_error(shown(name, held), entry)));
        warming.extend(entry.warming.iter().map(|held| shown(name, held)));
    }
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
        "version_info": all.version,
        "static_clusters": statics,
        "dynamic_active_clusters": active,
        "dynamic_warming_clusters": warming,
    })
}

fn listeners(state: &State) -> Value {
    let all = &state.listeners;
    let shown = |name: &String, held: &Held<_>| json!({"version_info": held.version, "listener": resource(LISTENER, &held.body, name), "last_updated": time(held.updated)});
    let (mut statics, mut dynamic) = (Vec::new(), Vec::new());
    for (name, entry) in &all.entries {
        if entry.is_static {
            let held: Option<&Held<Listener>> = entry.active.as_ref().or(entry.warming.as_ref());
            let encoded =
                held.map(|held| json(to_json(&encode_listener(&held.value, Dialect::Pillion).body)));
            statics.push(json!({ "listener": encoded }));
            continue;
        }
        let mut one = Map::from_iter([("name".to_owned(), json!(name))]);
        for (field, held) in [("active_state", &entry.active), ("warming_state", &entry.warming)] {
            one.extend(held.iter().map(|held| (field.to_owned(), shown(name, held))));
        }
        dynamic.push(with_error(Value::Object(one), entry));
    }
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        "version_info": all.version,
        "static_listeners": statics,
        "dynamic_listeners": dynamic,
    })
}

fn routes(state: &State) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
        "dynamic_route_configs": leaves(state, ROUTE, "route_config"),
    })
}

fn endpoints(state: &State) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
        "dynamic_endpoint_configs": leaves(state, ENDPOINTS, "endpoint_config"),
    })
}

fn secrets(state: &State) -> Value {
    let (active, warming): (Vec<Value>, Vec<Value>) =
        leaves(state, SECRET, "secret").into_iter().partition(|leaf| leaf.get("last_updated").is_some());
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
        "dynamic_active_secrets": active,
        "dynamic_warming_secrets": warming,
    })
}

/// Those of a type that have come; of secrets also those that have not.
fn leaves(state: &State, of: &str, field: &str) -> Vec<Value> {
    let shown = |leaf: &Leaf| {
        let mut one = Map::new();
        if of == SECRET {
            one.insert("name".to_owned(), json!(leaf.name));
        }
        if let Some(updated) = leaf.updated {
            one.insert("version_info".to_owned(), json!(leaf.version));
            one.insert(field.to_owned(), resource(of, &leaf.body, &leaf.name));
            one.insert("last_updated".to_owned(), json!(time(updated)));
        } else if of != SECRET {
            return None;
        }
        one.extend(leaf.error.iter().map(|error| ("error_state".to_owned(), refusal(error))));
        Some(Value::Object(one))
    };
    let of_type = state.leaves.iter().filter(|((type_url, _), _)| *type_url == of);
    of_type.filter_map(|(_, leaf)| shown(leaf)).collect()
}

fn with_error<T>(mut shown: Value, entry: &Entry<T>) -> Value {
    if let Some(error) = &entry.error {
        shown["error_state"] = refusal(error);
    }
    shown
}

fn refusal(refusal: &Refusal) -> Value {
    json!({"last_update_attempt": time(refusal.at), "details": refusal.reason})
}

/// As received.
fn resource(type_url: &str, body: &Bytes, name: &str) -> Value {
    if body.is_empty() {
        return json!({ "name": name });
    }
    json(to_json(&Encoded::new(type_url, name, body.to_vec()).body))
}

fn json(value: Result<Value, pillion_xds::json::JsonError>) -> Value {
    value.unwrap_or_else(|error| Value::String(error.to_string()))
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
