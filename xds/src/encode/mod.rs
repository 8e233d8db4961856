//! Model to Envoy's protobufs.
//!
//! [`Dialect::Pillion`] round-trips: decoding gives the same model again. The other dialects are
//! for clients that are not ours and lose what these cannot do:
//!
//! | Model | Envoy | gRPC |
//! |---|---|---|
//! | [`LoadBalancing::Ewma`](pillion_model::cluster::LoadBalancing) | least request | least request, else round robin |
//! | random, Maglev | as they are | round robin, ring hash |
//! | `Auto` protocol where an endpoint may be plaintext | HTTP/1.1 | – |
//! | `mark_local_replies` | a local reply mapper | – |
//! | `only_safe` of retries | any method is retried | any method is retried |
//! | settings of filters at routes | as they are | faults only |
//! | `timeout` of a route | as it is | the longest time of a call |
//! | stale endpoints | degraded | healthy, at their priority |
//! | SDS secrets of the proxy's own | files | certificate provider instances |
//! | listeners with filter chains | as they are | as they are, without listener filters |

mod authz;
mod balancing;
mod canonical;
mod cluster;
mod endpoint;
mod filters;
mod health_check;
mod http;
mod internal_redirect;
mod jwt;
mod listener;
mod local_reply;
mod log_filter;
mod matcher;
mod metadata;
mod rate_limit;
mod rbac;
mod route;
mod tls;

use std::collections::BTreeMap;

use pillion_model::cluster::Cluster;
use pillion_model::endpoint::LoadAssignment;
use pillion_model::listener::Listener;
use pillion_model::mesh::MeshService;
use pillion_model::route::RouteConfiguration;
use prost::{Message, Name};

pub(crate) use http::local_reply_mark;
pub(crate) use listener::MARK_LOCAL_REPLIES;
pub(crate) use route::RETRY_ONLY_SAFE;
pub use tls::GRPC_CERTIFICATES;

use crate::ads::Encoded;
use crate::pb;
use crate::type_url;

/// For whom a resource is encoded.
#[derive(Clone, Copy, Debug)]
pub enum Dialect<'a> {
    /// A Pillion proxy: nothing is lost.
    Pillion,
    /// Envoy.
    Envoy(&'a EnvoyOptions),
    /// A gRPC client or server.
    Grpc,
}

/// What an Envoy of the mesh is told about its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvoyOptions {
    /// Where it finds its own certificate and the mesh's roots.
    pub secrets: EnvoySecrets,
}

/// Where an Envoy finds its own certificate and the mesh's roots. No private key crosses ADS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvoySecrets {
    /// PEM files, read when a resource that names them arrives.
    Pem {
        /// Chain, leaf first.
        certificate: String,
        /// Key of the leaf.
        key: String,
        /// Roots of the mesh.
        roots: String,
    },
    /// Files in Envoy's SDS form (see [`crate::bootstrap::sds_files`]), watched: a renewed
    /// certificate is used without a restart.
    Sds {
        /// The file with the secret `pillion:svid`.
        certificate: String,
        /// The file with the secret `pillion:roots`.
        roots: String,
    },
}

/// Encodes a listener (LDS).
#[must_use]
pub fn encode_listener(listener: &Listener, dialect: Dialect<'_>) -> Encoded {
    let message = listener::listener(listener, dialect);
    Encoded::new(type_url::LISTENER, listener.name.clone(), bytes(&message))
}

/// Encodes a cluster (CDS).
#[must_use]
pub fn encode_cluster(cluster: &Cluster, dialect: Dialect<'_>) -> Encoded {
    let message = cluster::cluster(cluster, dialect);
    Encoded::new(type_url::CLUSTER, cluster.name.clone(), bytes(&message))
}

/// Encodes a route configuration (RDS).
#[must_use]
pub fn encode_routes(routes: &RouteConfiguration, dialect: Dialect<'_>) -> Encoded {
    let message = route::configuration(routes, dialect);
    Encoded::new(type_url::ROUTE, routes.name.clone(), bytes(&message))
}

/// Encodes the endpoints of a cluster (EDS).
#[must_use]
pub fn encode_endpoints(endpoints: &LoadAssignment, dialect: Dialect<'_>) -> Encoded {
    let message = endpoint::assignment(endpoints, dialect);
    Encoded::new(type_url::ENDPOINTS, endpoints.cluster.clone(), bytes(&message))
}

/// Encodes a service as the answer to the question for `name`, one of its names.
#[must_use]
pub fn encode_service(service: &MeshService, name: &str) -> Encoded {
    let message = crate::mesh::MeshService {
        namespace: service.service.namespace().to_owned(),
        service: service.service.service().to_owned(),
        names: service.names.clone(),
        index: service.index.into(),
        ports: service
            .ports
            .iter()
            .map(|port| crate::mesh::MeshPort {
                name: port.name.clone(),
                port: port.port.into(),
                protocol: port.protocol.as_str().to_owned(),
                route_configuration: port.route_configuration.clone(),
                clusters: port.clusters.clone(),
            })
            .collect(),
    };
    Encoded::new(type_url::SERVICE, name, message.encode_to_vec())
}

/// The one encoding of a message.
pub(crate) fn bytes<M: Message + Name>(message: &M) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    if let Some(shape) = canonical::shape(&M::full_name()) {
        canonical::order(&mut bytes, shape);
    }
    bytes
}

/// Packs a message with its type's URL.
pub(crate) fn any<M: Message + Name>(message: &M) -> pb::Any {
    pb::Any { type_url: M::type_url(), value: bytes(message) }
}

fn boolean(value: bool) -> pb::BoolValue {
    pb::BoolValue { value }
}

fn number(value: u32) -> pb::UInt32Value {
    pb::UInt32Value { value }
}

fn large(value: u64) -> pb::UInt64Value {
    pb::UInt64Value { value }
}

fn percent(value: u32) -> pb::types::Percent {
    pb::types::Percent { value: value.into() }
}

pub(crate) fn duration(value: std::time::Duration) -> pb::Duration {
    // Protobuf's longest duration is 10 000 years; what is longer counts as that.
    const SECONDS_MAX: u64 = 315_576_000_000;
    pb::Duration {
        seconds: value.as_secs().min(SECONDS_MAX).cast_signed(),
        nanos: value.subsec_nanos().cast_signed(),
    }
}

/// A limit: none is zero.
fn limit(value: Option<std::time::Duration>) -> pb::Duration {
    duration(value.unwrap_or_default())
}

fn fraction(value: pillion_model::endpoint::Fraction) -> pb::types::FractionalPercent {
    use pb::types::fractional_percent::DenominatorType as D;
    let denominator = match value.denominator {
        10_000 => D::TenThousand,
        1_000_000 => D::Million,
        _ => D::Hundred,
    };
    pb::types::FractionalPercent { numerator: value.numerator, denominator: denominator.into() }
}

/// A share that a runtime layer may override in Envoy; ours never is.
fn runtime_fraction(value: pillion_model::endpoint::Fraction) -> pb::core::RuntimeFractionalPercent {
    pb::core::RuntimeFractionalPercent { default_value: Some(fraction(value)), runtime_key: String::new() }
}

pub(crate) fn text(value: impl Into<String>) -> pb::Value {
    pb::Value { kind: Some(pb::Kind::StringValue(value.into())) }
}

fn texts<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> pb::Struct {
    pb::Struct { fields: pairs.into_iter().map(|(key, value)| (key.clone(), text(value))).collect() }
}

/// Metadata with the given parts; `None` if there are none.
fn metadata(parts: BTreeMap<&str, pb::Struct>) -> Option<pb::core::Metadata> {
    let filter_metadata: std::collections::HashMap<_, _> = parts
        .into_iter()
        .filter(|(_, part)| !part.fields.is_empty())
        .map(|(key, part)| (key.to_owned(), part))
        .collect();
    (!filter_metadata.is_empty()).then(|| pb::core::Metadata {
        filter_metadata,
        typed_filter_metadata: std::collections::HashMap::new(),
    })
}

/// Our own metadata: one switch, if it is on.
fn flag(name: &str, on: bool) -> Option<pb::core::Metadata> {
    let value = pb::Value { kind: Some(pb::Kind::BoolValue(true)) };
    let fields = on.then(|| (name.to_owned(), value)).into_iter().collect();
    metadata(BTreeMap::from([(pb::METADATA, pb::Struct { fields })]))
}

/// Asked of the stream this came on.
fn ads() -> pb::core::ConfigSource {
    pb::core::ConfigSource {
        resource_api_version: pb::core::ApiVersion::V3.into(),
        config_source_specifier: Some(pb::core::config_source::ConfigSourceSpecifier::Ads(
            pb::core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

/// Whoever this came from, on a stream of another service.
fn the_same_server() -> pb::core::ConfigSource {
    pb::core::ConfigSource {
        resource_api_version: pb::core::ApiVersion::V3.into(),
        config_source_specifier: Some(pb::core::config_source::ConfigSourceSpecifier::Self_(
            pb::core::SelfConfigSource { transport_api_version: pb::core::ApiVersion::V3.into() },
        )),
        ..Default::default()
    }
}

/// Messages that are put into others, for bootstrap files.
pub(crate) mod messages {
    pub(crate) use super::cluster::cluster;
    pub(crate) use super::listener::listener;
}
