//! Who opens an ADS stream, and what it says of itself.
//!
//! Metadata of foreign clients under the key [`METADATA_KEY`] (what `pillion generate envoy|grpc` writes):
//! where an Envoy's certificate is and what it binds, which credentials a gRPC application uses, and an
//! instance to register while the stream is open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pillion_model::name::{NodeId, SpiffeId};
use pillion_xds::ads::NodeInfo;
use pillion_xds::encode::{Dialect, EnvoyOptions, EnvoySecrets};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use super::Announced;
use crate::catalog::{Catalog, FieldProblem, Registration};
use crate::lease::beat_interval;
use crate::resolve::GrpcCredentials;

/// The key in a node's metadata.
pub const METADATA_KEY: &str = "pillion";
/// Where a foreign Envoy listens for its application unless it says otherwise.
const OUTBOUND_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15001);
/// An application that gives its channels and servers the credentials that xDS describes.
const CREDENTIALS_XDS: &str = "xds";
/// One that gives them none.
const CREDENTIALS_PLAINTEXT: &str = "plaintext";
/// The lease of an announced instance: it is gone soon after its stream.
const ANNOUNCED_TTL: &str = "15s";

/// What kind of client a stream serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// One of our sidecars.
    Sidecar,
    /// An Envoy.
    Envoy(EnvoyNode),
    /// A gRPC client or server without a proxy.
    Grpc(GrpcCredentials),
}

impl Client {
    /// In which form it is told of its own inbound side; `None`: it has no proxy's.
    pub(super) fn dialect(&self) -> Option<Dialect<'_>> {
        match self {
            Self::Sidecar => Some(Dialect::Pillion),
            Self::Envoy(node) => Some(Dialect::Envoy(&node.envoy)),
            Self::Grpc(_) => None,
        }
    }
}

/// What a foreign Envoy tells of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvoyNode {
    /// Where its certificate and the mesh's roots are.
    pub envoy: EnvoyOptions,
    /// Where it listens for its application, routing by Host.
    pub outbound: SocketAddr,
    /// The slot of virtual addresses it claims for tcp services; `None`: it gets no such listeners.
    pub vip_slot: Option<u8>,
}

impl EnvoyNode {
    /// What it binds.
    pub(super) fn options(&self) -> crate::resolve::EnvoyOptions {
        crate::resolve::EnvoyOptions { outbound: self.outbound, vip_slot: self.vip_slot }
    }

    /// The node metadata that says this; an `instance` is registered while the stream is open.
    pub fn to_metadata(&self, instance: Option<&Value>) -> Value {
        let secrets = match &self.envoy.secrets {
            EnvoySecrets::Pem { certificate, key, roots } => {
                json!({"certificate": certificate, "key": key, "roots": roots})
            }
            EnvoySecrets::Sds { certificate, roots } => {
                json!({"sds": {"certificate": certificate, "roots": roots}})
            }
        };
        let mut fields = Map::new();
        fields.insert("secrets".to_owned(), secrets);
        fields.insert("outbound".to_owned(), json!(self.outbound.to_string()));
        if let Some(slot) = self.vip_slot {
            fields.insert("vipSlot".to_owned(), json!(slot));
        }
        if let Some(instance) = instance {
            fields.insert("instance".to_owned(), instance.clone());
        }
        json!({METADATA_KEY: fields})
    }

    /// Reads node metadata.
    ///
    /// # Errors
    ///
    /// The field that is missing or wrong.
    pub fn from_metadata(metadata: &Value) -> Result<Self, FieldProblem> {
        let fields = &metadata[METADATA_KEY];
        let problem = |field: &str, detail: String| FieldProblem {
            field: format!("node.metadata.{METADATA_KEY}{field}"),
            detail,
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let files = &fields["secrets"];
        let sds = &files["sds"];
        let pem = (text(&files["certificate"]), text(&files["key"]), text(&files["roots"]));
        let secrets = match (pem, (text(&sds["certificate"]), text(&sds["roots"]))) {
            (_, (Some(certificate), Some(roots))) => EnvoySecrets::Sds { certificate, roots },
            ((Some(certificate), Some(key), Some(roots)), _) => EnvoySecrets::Pem { certificate, key, roots },
            _ => {
                let want = "want {certificate, key, roots} or {sds: {certificate, roots}}, file names as \
                            `pillion generate envoy` writes them";
                return Err(problem(".secrets", format!("got {files}, {want}")));
            }
        };
        let outbound = match &fields["outbound"] {
            Value::Null => OUTBOUND_DEFAULT,
            value => value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
                problem(".outbound", format!("got {value}, want address and port, such as 127.0.0.1:15001"))
            })?,
        };
        let vip_slot = match &fields["vipSlot"] {
            Value::Null => None,
            value => {
                let slot = value.as_u64().and_then(|slot| u8::try_from(slot).ok()).filter(|slot| *slot < 64);
                Some(slot.ok_or_else(|| problem(".vipSlot", format!("got {value}, want 0 to 63")))?)
            }
        };
        Ok(Self { envoy: EnvoyOptions { secrets }, outbound, vip_slot })
    }
}

/// Lets a node in if it is who its certificate says.
pub(super) fn admit(node: &NodeInfo, peer: Option<&SpiffeId>) -> Result<(NodeId, Client), Status> {
    let Some(peer) = peer else {
        return Err(Status::unauthenticated("a client certificate of the mesh is needed for ADS"));
    };
    let id: NodeId = node
        .id
        .parse()
        .map_err(|error| Status::invalid_argument(format!("node.id `{}`: {error}", node.id)))?;
    if peer.service_name() != Some(&id.service) {
        return Err(Status::permission_denied(format!(
            "node.id is {id}, but the client certificate is {peer}; a proxy may speak only for its own service"
        )));
    }
    if node.is_pillion() {
        return Ok((id, Client::Sidecar));
    }
    if node.user_agent.to_ascii_lowercase().starts_with("grpc") {
        let credentials = grpc_credentials(&node.metadata).map_err(invalid)?;
        return Ok((id, Client::Grpc(credentials)));
    }
    let envoy = EnvoyNode::from_metadata(&node.metadata).map_err(invalid)?;
    Ok((id, Client::Envoy(envoy)))
}

fn invalid(problem: FieldProblem) -> Status {
    Status::invalid_argument(format!("{}: {}", problem.field, problem.detail))
}

/// The node metadata of a gRPC client or server, as `pillion generate grpc` writes it; an `instance` is
/// registered while the stream is open.
pub fn grpc_metadata(credentials: GrpcCredentials, instance: Option<&Value>) -> Value {
    let mut fields = Map::new();
    let word = match credentials {
        GrpcCredentials::Xds => CREDENTIALS_XDS,
        GrpcCredentials::Plaintext => CREDENTIALS_PLAINTEXT,
    };
    fields.insert("credentials".to_owned(), json!(word));
    if let Some(instance) = instance {
        fields.insert("instance".to_owned(), instance.clone());
    }
    json!({METADATA_KEY: fields})
}

fn grpc_credentials(metadata: &Value) -> Result<GrpcCredentials, FieldProblem> {
    match &metadata[METADATA_KEY]["credentials"] {
        Value::Null => Ok(GrpcCredentials::default()),
        value if *value == CREDENTIALS_XDS => Ok(GrpcCredentials::Xds),
        value if *value == CREDENTIALS_PLAINTEXT => Ok(GrpcCredentials::Plaintext),
        value => Err(FieldProblem {
            field: format!("node.metadata.{METADATA_KEY}.credentials"),
            detail: format!("got {value}, want {CREDENTIALS_XDS} or {CREDENTIALS_PLAINTEXT}"),
        }),
    }
}

/// The instance a foreign client announces in its metadata.
pub(super) fn announced_instance(node: &NodeInfo, id: &NodeId) -> Result<Option<Registration>, Status> {
    let mut body = match &node.metadata[METADATA_KEY]["instance"] {
        Value::Null => return Ok(None),
        _ if node.is_pillion() => return Ok(None),
        body => body.clone(),
    };
    if let Value::Object(fields) = &mut body {
        fields.entry("ttl").or_insert_with(|| json!(ANNOUNCED_TTL));
    }
    let parsed = Registration::parse(id.service.clone(), id.instance.clone(), &body);
    parsed.map(Some).map_err(|problems| {
        let text = problems.iter().map(|problem| {
            format!("node.metadata.{METADATA_KEY}.instance.{}: {}", problem.field, problem.detail)
        });
        Status::invalid_argument(text.collect::<Vec<_>>().join("; "))
    })
}

/// Registers announced instances and beats for them while their streams are open.
pub(super) async fn keep_announced(catalog: &Arc<Catalog>, mut announced: mpsc::Receiver<Announced>) {
    let mut tasks = JoinSet::new();
    while let Some(Announced { registration, left }) = announced.recv().await {
        let catalog = Arc::clone(catalog);
        tasks.spawn(async move {
            tokio::select! {
                () = left.cancelled() => {}
                () = beat(&catalog, &registration) => {}
            }
        });
        while tasks.try_join_next().is_some() {}
    }
}

async fn beat(catalog: &Catalog, registration: &Registration) {
    let mut ticks = tokio::time::interval(beat_interval(registration.ttl).min(Duration::from_secs(10)));
    loop {
        ticks.tick().await;
        // The same registration again is a beat, and brings back one that expired meanwhile.
        if let Err(error) = catalog.register(registration).await {
            tracing::warn!(service = %registration.service, id = %registration.id, %error, "announced instance");
        }
    }
}
