//! The trust bundles of other meshes, as the store keeps them. Who may change them, and to what, is
//! decided by [`crate::federation`]; here they become part of what every sidecar is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pillion_model::name::TrustDomain;
use pillion_net::tls::{Federated, Roots};
use pillion_xds::mesh::FederatedBundle;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::material::Material;
use super::{Authority, CaError, millis, moment};
use crate::store::{Key, Op, Space, State, Transaction};

/// The roots of another trust domain that are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedBundle {
    /// The revision of the store that wrote it.
    pub revision: u64,
    /// Its sequence number (`spiffe_sequence`); `None`: the other side counts none.
    pub sequence: Option<u64>,
    /// Its root certificates, DER. None: all have expired, and nobody is trusted.
    pub roots: Vec<CertificateDer<'static>>,
    /// When it last became different.
    pub since: SystemTime,
    /// SHA-256 (hex) of the first bundle that an operator trusted, from which it came about.
    pub basis: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// DER in base64.
    roots: Vec<String>,
    /// Unix milliseconds.
    since: u64,
    basis: String,
}

impl Authority {
    /// The bundles of other meshes, by trust domain.
    pub fn federated(&self) -> BTreeMap<TrustDomain, TrustedBundle> {
        self.material().federated.clone()
    }

    /// A sequence number of our own bundle: rises whenever the bundle changes.
    pub fn bundle_sequence(&self) -> u64 {
        self.material().revision
    }

    /// Puts a bundle in the place of the one of this revision (`None`: of none).
    ///
    /// # Errors
    ///
    /// The store's; a conflict if somebody else was quicker.
    pub(crate) async fn put_federated(
        &self,
        domain: &TrustDomain,
        bundle: &TrustedBundle,
        instead_of: Option<u64>,
    ) -> Result<(), CaError> {
        let kept = Kept {
            sequence: bundle.sequence,
            roots: bundle.roots.iter().map(|root| STANDARD.encode(root)).collect(),
            since: millis(bundle.since),
            basis: bundle.basis.clone(),
        };
        let value = serde_json::to_vec(&kept).expect("plain fields have a JSON form");
        let mut transaction = Transaction::default();
        transaction.require(key(domain), instead_of).push(Op::put(key(domain), value));
        self.store.commit(transaction).await?;
        self.reload().await.map(drop)
    }

    /// Trusts nobody of a trust domain any more.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn drop_federated(&self, domain: &TrustDomain) -> Result<(), CaError> {
        let mut transaction = Transaction::default();
        transaction.push(Op::delete(key(domain)));
        self.store.commit(transaction).await?;
        self.reload().await.map(drop)
    }
}

fn key(domain: &TrustDomain) -> Key {
    Key::new(Space::Ca, format!("{PREFIX}{domain}"))
}

/// Whether a bundle is kept under this key.
pub(super) fn is_key(key: &Key) -> bool {
    key.space == Space::Ca && key.name.starts_with(PREFIX)
}

/// Reads all of them. One that cannot be read is left out, and so nobody of it trusted.
pub(super) fn read(state: &State) -> BTreeMap<TrustDomain, TrustedBundle> {
    let entries = state.space(Space::Ca).filter_map(|(name, entry)| {
        let domain = name.strip_prefix(PREFIX)?;
        let bundle = read_one(entry.revision, &entry.value);
        let found = TrustDomain::parse(domain)
            .map_err(|error| error.to_string())
            .and_then(|domain| Ok((domain, bundle?)));
        found.inspect_err(|error| tracing::error!(domain, error, "a federated bundle cannot be read")).ok()
    });
    entries.collect()
}

fn read_one(revision: u64, value: &[u8]) -> Result<TrustedBundle, String> {
    let kept: Kept = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    let decode = |text: &String| STANDARD.decode(text).map(CertificateDer::from);
    let roots = kept.roots.iter().map(decode).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let since = moment(kept.since);
    Ok(TrustedBundle { revision, sequence: kept.sequence, roots, since, basis: kept.basis })
}

/// As the registry's own verifier wants them.
pub(super) fn roots(material: &Material) -> Arc<Federated> {
    let made = material.federated.iter().filter_map(|(domain, bundle)| {
        let roots = Roots::federated(domain, bundle.roots.clone());
        let roots =
            roots.inspect_err(|error| tracing::error!(%domain, %error, "a federated root is unusable"));
        Some((domain.clone(), Arc::new(roots.ok()?)))
    });
    Arc::new(made.collect())
}

/// As sidecars are told them.
pub(super) fn told(material: &Material) -> Vec<FederatedBundle> {
    let told = material.federated.iter().map(|(domain, bundle)| FederatedBundle {
        trust_domain: domain.to_string(),
        roots: bundle.roots.iter().map(|root| root.to_vec()).collect(),
    });
    told.collect()
}

const PREFIX: &str = "federated/";
