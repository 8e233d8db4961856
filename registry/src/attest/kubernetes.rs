//! Proof by a projected service account token of Kubernetes.
//!
//! The token is a bearer's: it is good for whoever has it until it ends. That is why it must be for this
//! registry's audience, and why sidecars show it only to a registry they have verified.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_net::fetch::Origin;
use pillion_net::resolve::Resolver;
use pillion_xds::mesh::issue_request::Proof;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::jwt::{Keys, Token};
use super::{Attestor, Bound, Method, Proven, Refusal};

pub(super) struct Kubernetes {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) keys: Source,
    /// Keys in hand.
    pub(super) known: Mutex<Option<Known>>,
}

/// Keys in hand.
pub(super) struct Known {
    keys: Arc<Keys>,
    read: Instant,
    /// When it was last tried to read them.
    tried: Instant,
}

/// Where the issuer's keys are.
pub(super) enum Source {
    File(PathBuf),
    Url(Box<Url>),
}

/// A URL, and how it is asked.
pub(super) struct Url {
    pub(super) origin: Origin,
    pub(super) resolver: Resolver,
    /// A file with a token to ask with.
    pub(super) bearer: Option<PathBuf>,
}

#[async_trait::async_trait]
impl Attestor for Kubernetes {
    fn method(&self) -> Method {
        Method::Kubernetes
    }

    async fn prove(&self, proof: &Proof, request: &Bound<'_>) -> Result<Proven, Refusal> {
        let refuse = |reason: String| Method::Kubernetes.refuse(reason);
        let Proof::Kubernetes(proof) = proof else { return Err(refuse("it is no token".to_owned())) };
        let token = Token::parse(&proof.token).map_err(|error| refuse(format!("it is no token: {error}")))?;
        let keys = self.keys(&token.key_id).await?;
        let claims = keys.verify(&token).map_err(|reason| {
            refuse(format!("{reason}; want a token signed by a key of issuer {}", self.issuer))
        })?;
        let now = request.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.check(claims, now).map_err(refuse)?;
        let subject = claims["sub"].as_str().unwrap_or_default();
        let account = subject.strip_prefix(SUBJECT).filter(|account| account.matches(':').count() == 1);
        let account = account.ok_or_else(|| {
            refuse(format!("the token's subject is `{subject}`; want {SUBJECT}<namespace>:<name>"))
        })?;
        Ok(Proven { method: Method::Kubernetes, facts: vec![account.replace(':', "/")] })
    }
}

impl Kubernetes {
    /// Whether the token is ours to take, now: issuer, audience and end must be there.
    fn check(&self, claims: &Value, now: u64) -> Result<(), String> {
        let issuer = claims["iss"].as_str().unwrap_or_default();
        if issuer != self.issuer {
            return Err(format!("the token is of issuer `{issuer}`; want {}", self.issuer));
        }
        let audience = &claims["aud"];
        let is_ours = |value: &Value| value.as_str() == Some(&self.audience);
        if !is_ours(audience) && !audience.as_array().is_some_and(|all| all.iter().any(is_ours)) {
            return Err(format!("the token is for audience {audience}; want `{}`", self.audience));
        }
        let Some(end) = claims["exp"].as_u64() else { return Err("the token has no end (exp)".to_owned()) };
        if end.saturating_add(LEEWAY.as_secs()) < now {
            return Err(format!("the token expired {} s ago", now - end));
        }
        match &claims["nbf"] {
            Value::Null => Ok(()),
            begin if begin.as_u64().is_some_and(|begin| begin <= now + LEEWAY.as_secs()) => Ok(()),
            begin => Err(format!("the token is not good before {begin}; are the clocks right?")),
        }
    }

    /// The issuer's keys. They are read again now and then, for an issuer may take one back, and for one
    /// that is not among them; but not at anybody's will.
    async fn keys(&self, id: &str) -> Result<Arc<Keys>, Refusal> {
        let mut known = self.known.lock().await;
        if let Some(known) = &*known {
            let good_for = if known.keys.has(id) { KEPT } else { READ_EVERY };
            if known.read.elapsed() < good_for || known.tried.elapsed() < READ_EVERY {
                return Ok(Arc::clone(&known.keys));
            }
        }
        let now = Instant::now();
        match (self.read().await, &mut *known) {
            (Ok(keys), known) => {
                let keys = Arc::new(keys);
                *known = Some(Known { keys: Arc::clone(&keys), read: now, tried: now });
                Ok(keys)
            }
            // The last ones stay good.
            (Err(reason), Some(known)) if known.keys.has(id) => {
                tracing::warn!(%reason, "the keys of Kubernetes tokens cannot be read again");
                known.tried = now;
                Ok(Arc::clone(&known.keys))
            }
            (Err(reason), _) => Err(Refusal::Unavailable {
                method: Method::Kubernetes,
                reason: format!("the issuer's keys cannot be read: {reason}"),
            }),
        }
    }

    async fn read(&self) -> Result<Keys, String> {
        let text = match &self.keys {
            Source::File(file) => {
                std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?.into()
            }
            Source::Url(url) => {
                let Url { origin, resolver, bearer } = &**url;
                let mut request = http::Request::get("/");
                if let Some(file) = bearer {
                    let token = std::fs::read_to_string(file)
                        .map_err(|error| format!("{}: {error}", file.display()))?;
                    request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", token.trim()));
                }
                let answer = origin.send(resolver, request, "", KEYS_BYTES_MAX).await;
                let answer = answer.map_err(|error| error.to_string())?;
                if !answer.status.is_success() {
                    return Err(format!("{} answers {}", origin.authority(), answer.status));
                }
                answer.body
            }
        };
        Keys::parse(&text)
    }
}

const SUBJECT: &str = "system:serviceaccount:";
/// For clocks that differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// For how long keys are good without being read again.
const KEPT: Duration = Duration::from_secs(300);
/// How often keys are read at most.
const READ_EVERY: Duration = Duration::from_secs(10);
const KEYS_BYTES_MAX: usize = 256 * 1024;
