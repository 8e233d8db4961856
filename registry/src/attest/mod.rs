//! Proofs of who a sidecar is, beside join tokens: what is proven by each kind of proof, and one place that
//! says which service, and which instance of it, whoever has proven it may be.
//!
//! Nothing of this looks at what the caller says about itself, and no address is taken from a caller.

mod aws;
mod jwt;
mod kubernetes;
mod rules;
mod seen;
mod settings;
#[cfg(test)]
mod tests;
mod x509;

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use pillion_model::name::NodeId;
use pillion_xds::mesh::issue_request::Proof;
use prometheus::{IntCounterVec, Opts, Registry};

use rules::Rules;
pub use settings::SettingsError;

/// The kinds of proofs this registry takes, and what they are good for.
pub struct Attestation {
    attestors: Vec<Box<dyn Attestor>>,
    rules: Rules,
    counts: IntCounterVec,
}

/// A kind of proof.
#[async_trait::async_trait]
trait Attestor: Send + Sync {
    /// Which.
    fn method(&self) -> Method;

    /// What `proof`, of this kind, proves of whoever sent it with this request.
    async fn prove(&self, proof: &Proof, request: &Bound<'_>) -> Result<Proven, Refusal>;
}

/// The kinds of proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A certificate of another authority.
    X509,
    /// A service account token of Kubernetes.
    Kubernetes,
    /// Credentials of AWS.
    Aws,
}

/// What a proof is made for.
struct Bound<'a> {
    csr: &'a [u8],
    node: String,
    now: SystemTime,
}

/// Who somebody is, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    method: Method,
    /// Everything that a rule may name; the first one for people.
    facts: Vec<String>,
}

/// Why a proof is good for nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The registry has no such section.
    #[error("this registry takes no proof by {method}; {}", want(.taken))]
    Unknown {
        /// The kind that was presented.
        method: Method,
        /// Those that are.
        taken: Vec<Method>,
    },
    /// It proves nothing.
    #[error("{method}: {reason}")]
    Invalid {
        /// The kind.
        method: Method,
        /// What was presented, and what would be accepted.
        reason: String,
    },
    /// It is good, for somebody else.
    #[error("{proven} may not be {asked}: {reason}")]
    NotAllowed {
        /// Who it is.
        proven: Proven,
        /// Who it wants to be.
        asked: NodeId,
        /// What it may be.
        reason: String,
    },
    /// Whoever must be asked does not answer.
    #[error("{method}: {reason}")]
    Unavailable {
        /// The kind.
        method: Method,
        /// Why not.
        reason: String,
    },
}

impl Attestation {
    /// Reads a file of settings.
    ///
    /// # Errors
    ///
    /// [`SettingsError`]: every mistake with its place, or a file beside it that cannot be used.
    pub fn open(file: &Path, metrics: &Registry) -> Result<Self, SettingsError> {
        let (attestors, rules) = settings::open(file)?;
        let counts = Opts::new(METRIC, "Proofs of identity beside join tokens, by kind and outcome.");
        let counts = IntCounterVec::new(counts, &["method", "outcome"]).expect("a valid name and help");
        metrics.register(Box::new(counts.clone())).expect("each name is registered once");
        Ok(Self { attestors, rules, counts })
    }

    /// Whether `proof`, sent with this certificate request, makes its sender this node.
    ///
    /// # Errors
    ///
    /// [`Refusal`] says what was presented and what would be accepted.
    pub async fn authorize(
        &self,
        proof: &Proof,
        csr: &[u8],
        node: &NodeId,
        now: SystemTime,
    ) -> Result<Proven, Refusal> {
        let decided = self.decide(proof, csr, node, now).await;
        let outcome = match &decided {
            Ok(_) => "accepted",
            Err(Refusal::Unknown { .. }) => "unknown",
            Err(Refusal::Invalid { .. }) => "invalid",
            Err(Refusal::NotAllowed { .. }) => "not-allowed",
            Err(Refusal::Unavailable { .. }) => "unavailable",
        };
        self.counts.with_label_values(&[Method::of(proof).as_str(), outcome]).inc();
        decided
    }

    async fn decide(
        &self,
        proof: &Proof,
        csr: &[u8],
        node: &NodeId,
        now: SystemTime,
    ) -> Result<Proven, Refusal> {
        let method = Method::of(proof);
        let Some(attestor) = self.attestors.iter().find(|attestor| attestor.method() == method) else {
            let taken = self.attestors.iter().map(|attestor| attestor.method()).collect();
            return Err(Refusal::Unknown { method, taken });
        };
        let proven = attestor.prove(proof, &Bound { csr, node: node.to_string(), now }).await?;
        match self.rules.allow(&proven, node) {
            Ok(()) => Ok(proven),
            Err(reason) => Err(Refusal::NotAllowed { proven, asked: node.clone(), reason }),
        }
    }
}

impl fmt::Debug for Attestation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestation").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Method {
    fn of(proof: &Proof) -> Self {
        match proof {
            Proof::X509(_) => Self::X509,
            Proof::Kubernetes(_) => Self::Kubernetes,
            Proof::Aws(_) => Self::Aws,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Kubernetes => "kubernetes",
            Self::Aws => "aws",
        }
    }

    fn refuse(self, reason: impl Into<String>) -> Refusal {
        Refusal::Invalid { method: self, reason: reason.into() }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.method, self.facts.first().map_or("", String::as_str))
    }
}

fn want(methods: &[Method]) -> String {
    match methods {
        [] => "want a join token".to_owned(),
        methods => {
            let names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
            format!("want one by {}, or a join token", names.join(" or "))
        }
    }
}

const METRIC: &str = "pillion_registry_attestations_total";
