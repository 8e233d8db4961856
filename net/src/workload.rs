//! The SPIFFE Workload API: an identity from an agent on this machine, such as SPIRE's, instead of the
//! registry. The agent knows the caller by its process; nothing is proven to it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use pillion_model::name::{NodeId, SpiffeId};
use pillion_xds::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use pillion_xds::spiffe::{X509svid, X509svidRequest, X509svidResponse};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tonic::{Request, Streaming};

use crate::identity::{Identity, IdentityError, TrustBundle};

/// Where an agent answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    socket: PathBuf,
}

/// Why an agent gives no identity.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The address is none.
    #[error("`{0}` is no SPIFFE endpoint; want unix:///path/to/agent.sock")]
    Address(String),
    /// It cannot be reached.
    #[error("no agent at {socket}")]
    Connect {
        /// The socket.
        socket: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// It refuses; `PermissionDenied` means that it has no identity for this process.
    #[error("the agent at {socket} gives no identity: {code:?}: {reason}")]
    Refused {
        /// The socket.
        socket: String,
        /// Its status.
        code: tonic::Code,
        /// Its words.
        reason: String,
    },
    /// None of its identities is the service's.
    #[error("the agent has no identity of {want}, only {}; register one for this process", found.join(", "))]
    Other {
        /// The service.
        want: String,
        /// What it has.
        found: Vec<String>,
    },
    /// DER that cannot be taken apart.
    #[error("the agent's answer cannot be read: {0}")]
    Malformed(String),
    /// What it gave is not usable.
    #[error("the agent's identity is not usable")]
    Identity(#[from] IdentityError),
}

/// The identities of this process, as the agent tells them.
pub struct Identities {
    socket: String,
    stream: Streaming<X509svidResponse>,
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.socket.display())
    }
}

impl Agent {
    /// Reads an address as `SPIFFE_ENDPOINT_SOCKET` has it.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Address`].
    pub fn parse(text: &str) -> Result<Self, WorkloadError> {
        let path = text.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| WorkloadError::Address(text.to_owned()))?;
        Ok(Self { socket: path.into() })
    }

    /// Begins to follow the identities of this process.
    ///
    /// # Errors
    ///
    /// [`WorkloadError::Connect`] and [`WorkloadError::Refused`].
    pub async fn follow(&self) -> Result<Identities, WorkloadError> {
        let socket = self.socket.display().to_string();
        let path = Arc::new(self.socket.clone());
        let connector = tower::service_fn(move |_: Uri| {
            let path = Arc::clone(&path);
            async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.map_err(|source| WorkloadError::Connect { socket: socket.clone(), source })?;
        let mut request = Request::new(X509svidRequest {});
        // Without it an agent refuses, so that no browser can be made to ask.
        request.metadata_mut().insert(HEADER, tonic::metadata::MetadataValue::from_static("true"));
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        match client.fetch_x509svid(request).await {
            Ok(answer) => Ok(Identities { socket, stream: answer.into_inner() }),
            Err(status) => Err(refused(&socket, &status)),
        }
    }
}

impl Identities {
    /// The identity of `node`'s service, at first and whenever the agent tells another; `None` at the end of
    /// the stream.
    ///
    /// # Errors
    ///
    /// [`WorkloadError`]; the stream is of no use any more after [`WorkloadError::Refused`].
    pub async fn next(&mut self, node: &NodeId, zone: &str) -> Result<Option<Identity>, WorkloadError> {
        let message = self.stream.message().await.map_err(|status| refused(&self.socket, &status))?;
        message.map(|answer| choose(answer, node, zone)).transpose()
    }
}

/// The first identity that is one of the service.
fn choose(answer: X509svidResponse, node: &NodeId, zone: &str) -> Result<Identity, WorkloadError> {
    let id = |svid: &X509svid| {
        svid.spiffe_id.parse::<SpiffeId>().ok().filter(|id| id.service_name() == Some(&node.service))
    };
    let Some((svid, id)) = answer.svids.iter().find_map(|svid| Some((svid, id(svid)?))) else {
        let found = answer.svids.into_iter().map(|svid| svid.spiffe_id).collect();
        return Err(WorkloadError::Other { want: node.service.to_string(), found });
    };
    let bundle = TrustBundle {
        trust_domain: id.trust_domain().clone(),
        roots: certificates(&svid.bundle)?,
        revoked: Arc::default(),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone()));
    let identity = Identity::new(certificates(&svid.x509_svid)?, key, bundle, zone)?;
    // What it says beside the certificate is not what counts.
    if identity.svid.id != id {
        let found = vec![identity.svid.id.to_string()];
        return Err(WorkloadError::Other { want: node.service.to_string(), found });
    }
    Ok(identity)
}

/// Certificates that stand one behind the other.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, WorkloadError> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| WorkloadError::Malformed(error.to_string()))?;
        let (one, rest) = der.split_at(der.len() - rest.len());
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}

fn refused(socket: &str, status: &tonic::Status) -> WorkloadError {
    let (code, reason) = (status.code(), status.message().to_owned());
    WorkloadError::Refused { socket: socket.to_owned(), code, reason }
}

const HEADER: &str = "workload.spiffe.io";
const ANSWER_BYTES_MAX: usize = 4 << 20;
