//! What an Envoy of the mesh starts with: its node, and how it reaches the registry.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use pillion_model::cluster::{CircuitBreakers, Cluster, Discovery, LoadBalancing, UpstreamProtocol};
use pillion_model::endpoint::{Endpoint, HostAddress, LoadAssignment, LocalityEndpoints};
use pillion_model::health::Health;
use pillion_model::matcher::StringMatcher;
use pillion_model::name::SpiffeId;
use pillion_model::tls::{
    Certificate, NameKind, NameMatcher, ROOTS_SECRET, Roots, SVID_SECRET, TlsVersion, UpstreamTls, Validation,
};
use prost::Name;
use serde_json::{Value, json};

use crate::encode::{self, Dialect, EnvoyOptions};
use crate::json::{JsonError, message_to_json};
use crate::pb;
use crate::type_url;

/// Name of the cluster that is the registry.
const REGISTRY: &str = "pillion_registry";

/// What an Envoy has to know to join.
#[derive(Clone, Debug)]
pub struct BootstrapOptions {
    /// `<namespace>/<service>/<instance-id>`, as in its certificate.
    pub node_id: String,
    /// The service, as Envoy's node cluster.
    pub node_cluster: String,
    /// Node metadata: an object; may announce the instance that the stream registers.
    pub metadata: Value,
    /// Where registries answer ADS: names or addresses.
    pub registries: Vec<HostAddress>,
    /// The identity registries prove.
    pub registry_id: SpiffeId,
    /// Where Envoy finds its certificate and the mesh's roots.
    pub envoy: EnvoyOptions,
    /// Where Envoy's admin interface listens; `None`: nowhere.
    pub admin: Option<SocketAddr>,
}

/// The bootstrap of an Envoy that asks the registry for everything, by delta ADS over mutual TLS.
///
/// # Errors
///
/// Envoy's API has no JSON form of a part: none that the encoder makes.
pub fn generate_bootstrap(options: &BootstrapOptions) -> Result<Value, JsonError> {
    let message = encode::messages::cluster(&registry(options), Dialect::Envoy(&options.envoy));
    let cluster = message_to_json(&pb::cluster::Cluster::full_name(), &encode::bytes(&message))?;
    let by_ads = json!({"ads": {}, "resource_api_version": "V3"});
    let mut bootstrap = json!({
        "node": {"id": options.node_id, "cluster": options.node_cluster, "metadata": options.metadata},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": REGISTRY}}],
            },
            "cds_config": by_ads,
            "lds_config": by_ads,
        },
        "static_resources": {"clusters": [cluster]},
    });
    if let (Some(admin), Value::Object(fields)) = (options.admin, &mut bootstrap) {
        let socket = json!({"address": admin.ip().to_string(), "port_value": admin.port()});
        fields.insert("admin".to_owned(), json!({"address": {"socket_address": socket}}));
    }
    Ok(bootstrap)
}

/// The registry as a cluster: checked by its identity, not by its name.
fn registry(options: &BootstrapOptions) -> Cluster {
    let endpoints = options.registries.iter().map(|address| Endpoint {
        address: address.clone(),
        hostname: String::new(),
        weight: 1,
        health: Health::Serving,
        labels: Default::default(),
        other_labels: Default::default(),
        transport: Default::default(),
    });
    let assignment = LoadAssignment {
        cluster: REGISTRY.to_owned(),
        localities: vec![LocalityEndpoints {
            endpoints: endpoints.collect(),
            ..LocalityEndpoints::default()
        }],
        drops: Vec::new(),
        overprovisioning: 140,
    };
    let matcher = StringMatcher::exact(options.registry_id.to_string());
    Cluster {
        name: REGISTRY.to_owned(),
        discovery: Discovery::StrictDns { assignment, refresh: Duration::from_secs(5) },
        connect_timeout: Duration::from_secs(5),
        load_balancing: LoadBalancing::RoundRobin,
        slow_start: None,
        subsets: None,
        limits: CircuitBreakers::default(),
        limits_high: CircuitBreakers::default(),
        outlier_detection: None,
        health_check: None,
        panic_threshold_percent: 50,
        protocol: UpstreamProtocol::Http2,
        idle_timeout: None,
        requests_per_connection_max: 0,
        tls: Some(UpstreamTls {
            certificate: Some(Certificate::Secret(SVID_SECRET.to_owned())),
            validation: Some(Validation {
                roots: Roots::Secret(ROOTS_SECRET.to_owned()),
                names: vec![NameMatcher { kind: NameKind::Uri, matcher }],
            }),
            sni: String::new(),
            alpn: vec!["h2".to_owned()],
            min_version: TlsVersion::V1_3,
            max_version: TlsVersion::V1_3,
        }),
        transports: Vec::new(),
        destination: None,
    }
}

/// The two SDS files that [`encode::EnvoySecrets::Sds`] names: the proxy's own certificate, then
/// the roots. Both refer to PEM files, and Envoy reads these again when one is moved into the
/// folder of the first.
#[must_use]
pub fn sds_files(certificate: &Path, key: &Path, roots: &Path) -> (Value, Value) {
    let watched = |path: &Path| {
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        json!({"path": folder})
    };
    let own = json!({"resources": [{
        "@type": type_url::SECRET,
        "name": SVID_SECRET,
        "tls_certificate": {
            "certificate_chain": {"filename": certificate},
            "private_key": {"filename": key},
            "watched_directory": watched(certificate),
        },
    }]});
    let trusted = json!({"resources": [{
        "@type": type_url::SECRET,
        "name": ROOTS_SECRET,
        "validation_context": {
            "trusted_ca": {"filename": roots},
            "watched_directory": watched(roots),
        },
    }]});
    (own, trusted)
}
