//! How a process becomes a member: by join token or another proof at first, by its own SVID from then on.
//!
//! The registry is verified by the hash of its root's public key, which a token carries and which other
//! proofs are given beside; nobody else can answer. Keys are made here and never leave.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use pillion_model::name::{NodeId, SpiffeId};
use pillion_xds::mesh::identity_client::IdentityClient;
use pillion_xds::mesh::issue_request::Proof;
use pillion_xds::mesh::{IssueRequest, IssueResponse};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::transport::Channel;

use crate::attest::{AttestError, Attestation};
use crate::grpc::{ConnectError, Dialer, Security};
use crate::identity::{Identity, IdentityError, TrustBundle};
use crate::resolve::{ResolveError, Resolver, Target};
use crate::tls::{self, PeerCertificate, PeerError};

/// A join token: `<id>.<secret>.<sha256 of the root's public key>`.
///
/// `Display` writes the whole token, secret included; `Debug` leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public name of the token.
    pub id: String,
    /// What proves the right to join.
    pub secret: String,
    /// SHA-256 of the root's public key (SubjectPublicKeyInfo).
    pub pin: [u8; 32],
}

/// Why a text is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token: {reason}; want <id>.<secret>.<64 hex digits>, as `pillion token create` prints it"
)]
pub struct TokenError {
    reason: &'static str,
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let refuse = |reason| Err(TokenError { reason });
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, pin] = parts[..] else { return refuse("it does not have three parts") };
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if id.is_empty() || id.len() > PART_MAX || !plain(id) {
            return refuse(
                "its first part, the id, is empty or has other characters than letters and digits",
            );
        }
        if secret.is_empty() || secret.len() > PART_MAX || !plain(secret) {
            return refuse(
                "its second part, the secret, is empty or has other characters than letters and digits",
            );
        }
        let Some(pin) = unhex(pin) else {
            return refuse("its third part, the hash, is not 64 hex digits");
        };
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), pin })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, tls::hex(&self.pin))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.….{})", self.id, tls::hex(&self.pin))
    }
}

/// What a first contact is made with.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A join token.
    Token(JoinToken),
    /// Another proof, for a registry with one of these root keys (SHA-256).
    Attestation {
        /// What to prove it with.
        with: Attestation,
        /// Whom to prove it to.
        pins: Vec<[u8; 32]>,
    },
    /// Nothing: a registry started with `--open`, on loopback, over unverified TLS.
    OpenLoopback,
}

/// Why no identity was obtained.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No registry could be reached, or it could not be verified.
    #[error("no registry could be reached")]
    Connect(#[from] ConnectError),
    /// The name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Joining without a token off loopback.
    #[error(
        "{target} is not on this machine: joining it needs a join token (--join-token or PILLION_JOIN_TOKEN) or \
         another proof (--attest)"
    )]
    TokenNeeded {
        /// The registry.
        target: Target,
    },
    /// There is nothing to prove it with.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The registry refuses: trying again without a change cannot help.
    #[error("the registry refuses to issue a certificate: {reason}")]
    Refused {
        /// The registry's message.
        reason: String,
    },
    /// The registry cannot do it now.
    #[error("the registry cannot issue a certificate now: {reason}")]
    Unavailable {
        /// The registry's message.
        reason: String,
    },
    /// What it issued is not what was asked.
    #[error("the registry issued a certificate for {found}, not for {want}")]
    OtherService {
        /// Identity in the certificate.
        found: String,
        /// Service asked for.
        want: String,
    },
    /// The certificate cannot be read.
    #[error("the registry's answer holds no usable certificate")]
    Certificate(#[from] PeerError),
    /// The parts do not fit together.
    #[error("the registry's answer makes no identity")]
    Identity(#[from] IdentityError),
    /// No key could be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
}

impl JoinError {
    /// Whether trying again without a change cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::TokenNeeded { .. } | Self::Refused { .. } | Self::OtherService { .. } => true,
            Self::Connect(error) => error.is_of_another_mesh(),
            _ => false,
        }
    }
}

/// Obtains the first identity of `node` from one of `registries`. One attempt: callers retry.
///
/// # Errors
///
/// [`JoinError`]; [`JoinError::is_final`] tells whether to try again.
pub async fn join(
    registries: &[Target],
    credential: &Credential,
    node: &NodeId,
    resolver: &Resolver,
) -> Result<Identity, JoinError> {
    let config = match credential {
        Credential::Token(token) => tls::pinned_client_config(vec![token.pin]),
        Credential::Attestation { pins, .. } => tls::pinned_client_config(pins.clone()),
        Credential::OpenLoopback => {
            all_on_loopback(registries, resolver).await?;
            tls::unverified_client_config()
        }
    };
    let security = Security::Fixed(config, String::new());
    let channel = Dialer::new(registries.to_vec(), security, resolver.clone()).connect().await?;
    let request = Request::new(node)?;
    let (join_token, proof) = match credential {
        Credential::Token(token) => (token.to_string(), None),
        Credential::Attestation { with, .. } => {
            (String::new(), Some(with.prove(&request.csr, &node.to_string(), resolver).await?))
        }
        Credential::OpenLoopback => (String::new(), None),
    };
    // The registry has proved itself by the pinned root: it says which roots there are by now.
    request.send(channel, join_token, proof).await
}

/// Obtains the next identity of `node`, with a new key. `channel` presents the current one.
///
/// # Errors
///
/// As [`join`].
pub async fn renew(channel: Channel, node: &NodeId) -> Result<Identity, JoinError> {
    Request::new(node)?.send(channel, String::new(), None).await
}

/// A new key, and the request for its certificate.
struct Request<'a> {
    key: KeyPair,
    csr: Vec<u8>,
    node: &'a NodeId,
}

impl<'a> Request<'a> {
    fn new(node: &'a NodeId) -> Result<Self, JoinError> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr, node })
    }

    async fn send(
        self,
        channel: Channel,
        join_token: String,
        proof: Option<Proof>,
    ) -> Result<Identity, JoinError> {
        let Self { key, csr, node } = self;
        let mut request =
            tonic::Request::new(IssueRequest { join_token, csr, node_id: node.to_string(), proof });
        request.set_timeout(ISSUE_TIMEOUT);
        let issued = IdentityClient::new(channel).issue(request).await.map_err(|status| {
            let reason = status.message().to_owned();
            match status.code() {
                tonic::Code::Unauthenticated
                | tonic::Code::PermissionDenied
                | tonic::Code::InvalidArgument => JoinError::Refused { reason },
                code => JoinError::Unavailable { reason: format!("{code}: {reason}") },
            }
        })?;
        read(issued.into_inner(), &key, node)
    }
}

fn read(issued: IssueResponse, key: &KeyPair, node: &NodeId) -> Result<Identity, JoinError> {
    let der = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
    let chain = der(issued.chain);
    let leaf = PeerCertificate::parse(&chain)?;
    let id: SpiffeId = match leaf.spiffe_id() {
        Some(id) if id.service_name() == Some(&node.service) => id,
        _ => {
            let (found, want) = (leaf.uri_sans.join(", "), node.service.to_string());
            return Err(JoinError::OtherService { found, want });
        }
    };
    let bundle = TrustBundle {
        trust_domain: id.trust_domain().clone(),
        roots: der(issued.roots),
        revoked: Arc::default(),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Identity::new(chain, key, bundle, issued.zone)?)
}

async fn all_on_loopback(registries: &[Target], resolver: &Resolver) -> Result<(), JoinError> {
    for target in registries {
        if !resolver.addresses(&target.host).await?.iter().all(IpAddr::is_loopback) {
            return Err(JoinError::TokenNeeded { target: target.clone() });
        }
    }
    Ok(())
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Identities by token and by renewal need one answer each; the store may be slow.
const ISSUE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);
const PART_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_and_keep_their_secret_out_of_logs() {
        let text = format!("ab12.s3cret.{}", "0f".repeat(32));
        let token: JoinToken = text.parse().expect("a token");
        assert_eq!(token.to_string(), text);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().expect("from a file"), token);
        assert!(!format!("{token:?}").contains("s3cret"));
        let pin = "0f".repeat(32);
        for (bad, want) in [
            ("", "three parts"),
            ("a.b", "three parts"),
            (&format!(".b.{pin}") as &str, "the id"),
            (&format!("a..{pin}"), "the secret"),
            ("a.b.0f", "64 hex digits"),
            (&format!("a.b.{}", "zz".repeat(32)), "64 hex digits"),
        ] {
            let error = bad.parse::<JoinToken>().expect_err(bad).to_string();
            assert!(error.contains(want), "{bad}: {error}");
        }
    }

    #[tokio::test]
    async fn without_a_token_only_loopback_is_dialled() {
        let node: NodeId = "shop/web/web-1".parse().expect("a node");
        let target = Target::parse("192.0.2.1", 7071).expect("a target");
        let error = join(&[target], &Credential::OpenLoopback, &node, &Resolver::system())
            .await
            .expect_err("not loopback");
        assert!(error.is_final());
        assert!(error.to_string().contains("PILLION_JOIN_TOKEN"), "{error}");
    }
}
