//! Bootstrap files, as a Pillion proxy runs them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem::take;
use std::net::SocketAddr;

use pillion_model::mesh::Resources;
use prost::Name;
use serde_json::Value;

use super::dynamic::{Dynamic, check_references, dynamic};
use crate::decode::{Context, DecodeError, Reference, Secret, ignored, messages};
use crate::json::{message_from_json, message_to_json};
use crate::pb;

/// What a bootstrap says.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// Who the proxy is.
    pub node: Node,
    /// Where the admin interface listens; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// Listeners and clusters.
    pub resources: Resources,
    /// What single listeners and clusters name that is not in `resources`.
    pub references: References,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Who has everything else.
    pub dynamic: Dynamic,
    /// Paths of fields that were set and have no effect here: none touches security or traffic.
    pub ignored: Vec<String>,
}

/// Resources that others name, by the name of those others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// Of listeners.
    pub listeners: BTreeMap<String, Vec<Reference>>,
    /// Of clusters.
    pub clusters: BTreeMap<String, Vec<Reference>>,
}

impl References {
    fn all(&self) -> impl Iterator<Item = &Reference> {
        self.listeners.values().chain(self.clusters.values()).flatten()
    }
}

impl Bootstrap {
    /// Whether anything comes from elsewhere, or later.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic != Dynamic::default() || self.references.all().next().is_some()
    }
}

/// Who a proxy is. Envoy: `core.v3.Node`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// The group it belongs to.
    pub cluster: String,
    /// Anything else.
    pub metadata: Value,
}

/// Why a bootstrap is refused: every field that is not valid or not supported, by its path from
/// the beginning of the file.
pub type BootstrapError = DecodeError;

/// Reads a bootstrap in Envoy's form, parsed from JSON or YAML.
///
/// # Errors
///
/// Everything that is wrong or that a Pillion proxy cannot do, each with its path, such as
/// `static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[1].typed_config.@type`.
pub fn read_bootstrap(value: &Value) -> Result<Bootstrap, BootstrapError> {
    let message: pb::bootstrap::Bootstrap = message_from_json(&pb::bootstrap::Bootstrap::full_name(), value)
        .map_err(|problems| DecodeError { problems })?;
    let mut context = Context::default();
    let bootstrap = bootstrap(&mut context, message);
    let decoded = context.finish(bootstrap)?;
    Ok(Bootstrap { ignored: decoded.ignored, ..decoded.value })
}

fn bootstrap(cx: &mut Context, mut m: pb::bootstrap::Bootstrap) -> Bootstrap {
    ignored!(
        cx,
        m,
        stats_sinks,
        stats_config,
        stats_flush_interval,
        stats_flush,
        stats_eviction,
        deferred_stat_options,
        stats_server_version_override,
        tracing,
        watchdog,
        watchdogs,
        enable_dispatcher_stats,
        application_log_config,
        perf_tracing_file_path,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        flags_path,
    );
    let dynamic = cx.some("dynamic_resources", m.dynamic_resources.take(), dynamic).unwrap_or_default();
    let node = m.node.take().map(node).unwrap_or_default();
    let admin = cx.some("admin", m.admin.take(), admin).flatten();
    let mut bootstrap = Bootstrap {
        node,
        admin,
        resources: Resources::default(),
        references: References::default(),
        secrets: BTreeMap::new(),
        dynamic,
        ignored: Vec::new(),
    };
    let statics = m.static_resources.take().unwrap_or_default();
    cx.at("static_resources", |cx| static_resources(cx, statics, &mut bootstrap));
    if let Some(ads) = &bootstrap.dynamic.ads
        && !bootstrap.resources.clusters.contains_key(&ads.cluster)
    {
        let path = "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name";
        cx.refuse_at(path, format!("`{}` is none of static_resources.clusters", ads.cluster));
    }
    cx.rest(&m);
    bootstrap
}

fn node(node: pb::core::Node) -> Node {
    let metadata = node
        .metadata
        .and_then(|metadata| {
            let bytes = prost::Message::encode_to_vec(&metadata);
            message_to_json(&pb::Struct::full_name(), &bytes).ok()
        })
        .unwrap_or_default();
    Node { id: node.id, cluster: node.cluster, metadata }
}

fn admin(cx: &mut Context, mut admin: pb::bootstrap::Admin) -> Option<SocketAddr> {
    ignored!(cx, admin, access_log, access_log_path, profile_path, ignore_global_conn_limit);
    let address = cx.some("address", admin.address.take(), messages::socket_address);
    cx.rest(&admin);
    address
}

fn static_resources(
    cx: &mut Context,
    mut m: pb::bootstrap::bootstrap::StaticResources,
    bootstrap: &mut Bootstrap,
) {
    let Bootstrap { resources, references, secrets, dynamic, .. } = bootstrap;
    cx.each("secrets", take(&mut m.secrets), |cx, secret| {
        let secret = messages::secret(cx, secret);
        insert(cx, secrets, secret.name.clone(), secret);
    });
    cx.each("listeners", take(&mut m.listeners), |cx, listener| {
        let mut listener = messages::listener(cx, listener);
        if listener.name.is_empty() {
            listener.name = listener.address.map(|address| address.to_string()).unwrap_or_default();
        }
        let named = check_references(cx, dynamic, secrets);
        references.listeners.insert(listener.name.clone(), named);
        insert(cx, &mut resources.listeners, listener.name.clone(), listener);
    });
    cx.each("clusters", take(&mut m.clusters), |cx, cluster| {
        let cluster = messages::cluster(cx, cluster);
        let named = check_references(cx, dynamic, secrets);
        references.clusters.insert(cluster.name.clone(), named);
        insert(cx, &mut resources.clusters, cluster.name.clone(), cluster);
    });
    cx.rest(&m);
}

fn insert<T>(cx: &mut Context, all: &mut BTreeMap<String, T>, name: String, value: T) {
    match all.entry(name) {
        Entry::Occupied(entry) => {
            cx.refuse_at("name", format!("`{}` is taken; names are unique", entry.key()))
        }
        Entry::Vacant(entry) => drop(entry.insert(value)),
    }
}
