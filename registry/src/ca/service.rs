//! `pillion.mesh.v1.Identity`: issues certificates over gRPC, and tells the mesh's trust.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, stream};

use pillion_model::name::{NodeId, SpiffeId};
use pillion_net::bootstrap::JoinToken;
use pillion_net::tls::PeerCertificate;
use pillion_xds::mesh::identity_server::{Identity, IdentityServer};
use pillion_xds::mesh::{Following, IssueRequest, IssueResponse, Trust};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::federated;
use super::followers::Seat;
use super::material::Material;
use super::{Authority, CaError, TokenError};
use crate::attest::{Attestation, Proven, Refusal};
use crate::audit::Audit;

/// The service. The one call that is open to callers without a client certificate.
pub struct IdentityService {
    authority: Arc<Authority>,
    /// Started with `--open`: loopback needs no token.
    open: bool,
    /// Other proofs than join tokens; `None`: not taken.
    attestation: Option<Attestation>,
    stop: CancellationToken,
    audit: Arc<Audit>,
}

impl IdentityService {
    /// A service of `authority`. `open`: callers on loopback need no token. Streams end on `stop`.
    pub fn new(authority: Arc<Authority>, open: bool, stop: CancellationToken, audit: Arc<Audit>) -> Self {
        Self { authority, open, attestation: None, stop, audit }
    }

    /// The same, taking other proofs than join tokens.
    #[must_use]
    pub fn attesting(self, attestation: Option<Attestation>) -> Self {
        Self { attestation, ..self }
    }

    /// As tonic serves it.
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// Signs, and tells what proved the right to it.
    async fn sign(&self, request: Request<IssueRequest>) -> Result<(Proof, Response<IssueResponse>), Status> {
        let message = request.get_ref();
        let node: NodeId =
            message.node_id.parse().map_err(|error| Status::invalid_argument(format!("node_id: {error}")))?;
        // Signed first and handed out only when the proof is good: a request that cannot be signed
        // must not use up a token.
        let issued = self.authority.issue(&node, &message.csr).map_err(failure)?;
        let proof = self.authorize(&request, &node).await?;
        tracing::info!(%node, %proof, serial = issued.serial, peer = ?request.remote_addr(), "issued a certificate");
        let der =
            |all: Vec<rustls_pki_types::CertificateDer<'_>>| all.iter().map(|one| one.to_vec()).collect();
        let answer = IssueResponse {
            chain: der(issued.chain),
            roots: der(issued.roots),
            not_after: unix_seconds(issued.not_after),
            zone: self.authority.settings().zone,
        };
        Ok((proof, Response::new(answer)))
    }

    /// What the caller proves its right with.
    async fn authorize(&self, request: &Request<IssueRequest>, node: &NodeId) -> Result<Proof, Status> {
        let message = request.get_ref();
        let token = message.join_token.as_str();
        if let Some(proof) = &message.proof {
            let Some(attestation) = &self.attestation else {
                return Err(Status::unauthenticated(
                    "this registry takes no other proof than join tokens: start it with --attestation FILE, or \
                     create a token with `pillion token create`",
                ));
            };
            let proven = attestation.authorize(proof, &message.csr, node, SystemTime::now()).await;
            return proven.map(Proof::Proven).map_err(not_proven);
        }
        if !token.is_empty() {
            let token: JoinToken =
                token.parse().map_err(|error| Status::invalid_argument(format!("join_token: {error}")))?;
            self.authority.tokens().redeem(&token, &node.service).await.map_err(refusal)?;
            return Ok(Proof::Token(token.id));
        }
        if let Some(id) = request.extensions().get::<SpiffeId>() {
            let instance =
                request.extensions().get::<Arc<PeerCertificate>>().and_then(|peer| peer.instance());
            return renewal(id, instance.as_deref(), node);
        }
        let loopback = request.remote_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        match (self.open, loopback) {
            (true, true) => Ok(Proof::Loopback),
            (true, false) => Err(Status::unauthenticated(
                "this registry was started with --open, which lets only this machine in without a join token",
            )),
            (false, _) => Err(Status::unauthenticated(
                "a join token is needed: create one with `pillion token create` and pass it as PILLION_JOIN_TOKEN",
            )),
        }
    }
}

/// For the audit line.
enum Proof {
    Token(String),
    Proven(Proven),
    Renewal,
    Loopback,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token {id}"),
            Self::Proven(proven) => proven.fmt(f),
            Self::Renewal => f.write_str("renewal"),
            Self::Loopback => f.write_str("loopback"),
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = request.extensions().get::<SpiffeId>().map(ToString::to_string).unwrap_or_default();
        let from = request.remote_addr().map(|from| from.to_string()).unwrap_or_default();
        let what =
            format!("issue {}", request.get_ref().node_id.chars().take(NODE_SHOWN).collect::<String>());
        let (who, issued) = match self.sign(request).await {
            Ok((proof, issued)) => (proof.to_string(), Ok(issued)),
            Err(status) => (String::new(), Err(status)),
        };
        let outcome = match &issued {
            Ok(_) => "ok".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        let who = if peer.is_empty() { who } else { peer };
        self.audit.note(&who, from, what, outcome, issued.is_err());
        issued
    }

    type FollowStream = Told;

    async fn follow(&self, request: Request<Streaming<Following>>) -> Result<Response<Told>, Status> {
        let Some(peer) = request.extensions().get::<SpiffeId>().cloned() else {
            return Err(Status::unauthenticated(
                "a client certificate of the mesh is needed to follow its trust",
            ));
        };
        let mut requests = request.into_inner();
        let first = timeout(FIRST_WAIT, requests.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("no first message came"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("the first message is missing"))?;
        let node: NodeId =
            first.node_id.parse().map_err(|error| Status::invalid_argument(format!("node_id: {error}")))?;
        if peer.service_name() != Some(&node.service) {
            return Err(Status::permission_denied(format!(
                "node_id: {peer} is no instance of {}",
                node.service
            )));
        }
        let seat = self.authority.followers.enter(node.to_string());
        seat.acknowledge(first.version);
        let mut material = self.authority.material.subscribe();
        material.mark_changed();
        let follower = Follower { seat, requests, material, stop: self.stop.clone() };
        let told = stream::unfold(follower, |mut follower| async {
            let trust = follower.next().await?;
            Some((Ok(trust), follower))
        });
        Ok(Response::new(Box::pin(told)))
    }
}

type Told = Pin<Box<dyn Stream<Item = Result<Trust, Status>> + Send>>;

/// One stream on which the trust is told.
struct Follower {
    seat: Seat,
    requests: Streaming<Following>,
    material: watch::Receiver<Arc<Material>>,
    stop: CancellationToken,
}

impl Follower {
    /// The trust as it is next; `None` when the stream is over.
    async fn next(&mut self) -> Option<Trust> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                message = self.requests.message() => self.seat.acknowledge(message.ok()??.version),
                changed = self.material.changed() => {
                    changed.ok()?;
                    let material = Arc::clone(&self.material.borrow_and_update());
                    return Some(Trust {
                        version: material.version(),
                        roots: material.bundle().iter().map(|root| root.to_vec()).collect(),
                        revoked: material.revocations.revoked.texts().map(str::to_owned).collect(),
                        federated: federated::told(&material),
                    });
                }
            }
        }
    }
}

/// The current SVID obtains the next one of the same service, and of the same instance if it names one.
fn renewal(id: &SpiffeId, instance: Option<&str>, node: &NodeId) -> Result<Proof, Status> {
    if let Some(instance) = instance
        && instance != node.to_string()
        && id.service_name() == Some(&node.service)
    {
        return Err(Status::permission_denied(format!(
            "the certificate is {instance}'s; {node} needs a join token for its first one"
        )));
    }
    match id.service_name() {
        Some(service) if *service == node.service => Ok(Proof::Renewal),
        _ => Err(Status::permission_denied(format!(
            "{id} may renew its own certificate, not obtain one for {}; use a join token",
            node.service
        ))),
    }
}

fn refusal(error: TokenError) -> Status {
    match error {
        TokenError::Binding { .. } => Status::permission_denied(error.to_string()),
        TokenError::Store(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot redeem a join token");
            Status::unavailable("the registry's store does not answer; try again")
        }
        _ => Status::unauthenticated(error.to_string()),
    }
}

fn not_proven(refusal: Refusal) -> Status {
    tracing::warn!(%refusal, "a proof of identity is refused");
    let text = refusal.to_string();
    match refusal {
        Refusal::Unknown { .. } | Refusal::Invalid { .. } => Status::unauthenticated(text),
        Refusal::NotAllowed { .. } => Status::permission_denied(text),
        Refusal::Unavailable { .. } => Status::unavailable(text),
    }
}

fn failure(error: CaError) -> Status {
    match error {
        CaError::Request(reason) => Status::invalid_argument(format!("csr: {reason}")),
        revoked @ CaError::Revoked(_) => Status::permission_denied(revoked.to_string()),
        other => {
            tracing::error!(error = &other as &dyn std::error::Error, "cannot sign a certificate");
            Status::internal("the certificate authority cannot sign; see the registry's log")
        }
    }
}

fn unix_seconds(at: SystemTime) -> i64 {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Of what somebody says who they are.
const NODE_SHOWN: usize = 200;
/// For the message that begins a stream.
const FIRST_WAIT: Duration = Duration::from_secs(10);
