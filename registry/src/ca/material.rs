//! The authority's roots, where a rotation of them stands, and how the store keeps both.
//!
//! One value under one key: whoever changes it demands that nobody else did meanwhile, so of several
//! registries one takes each step. The steps are pure functions from one material to the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pillion_model::name::TrustDomain;
use pillion_net::tls::{PeerCertificate, hex, sha256};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::federated::{self, TrustedBundle};
use super::files::Given;
use super::keys::Keys;
use super::revocation::Revocations;
use super::root::Signer;
use super::seal::Seal;
use super::{CaError, millis, moment};
use crate::store::{Key, Position, Space, State};

/// The roots of the mesh as of a revision of the store.
pub(super) struct Material {
    pub(super) at: Position,
    /// The revision that wrote it.
    pub(super) revision: u64,
    /// Signs.
    pub(super) active: Root,
    /// Will sign, and is trusted already.
    pub(super) next: Option<Root>,
    /// Has signed leaves that may still be good, or longer ago; the last one retired comes last.
    pub(super) former: Vec<Former>,
    pub(super) step: Step,
    /// The longest lifetime that leaves were given.
    pub(super) leaf_lifetime_max: Duration,
    pub(super) revocations: Revocations,
    pub(super) federated: BTreeMap<TrustDomain, TrustedBundle>,
    keys: Keys,
    /// What the store holds is not what it should: keys in the clear, or the roots of other files.
    pub(super) differs: bool,
}

/// A root whose key is ours.
pub(super) struct Root {
    pub(super) signer: Arc<Signer>,
    /// Its key signed by the root before it.
    pub(super) cross_signed: Option<CertificateDer<'static>>,
}

/// A root that signs no more.
#[derive(Clone)]
pub(super) struct Former {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) cross_signed: Option<CertificateDer<'static>>,
}

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none.
    Steady,
    /// The next root is in every bundle, and awaited to be known everywhere.
    Announced {
        /// Since when.
        since: SystemTime,
    },
    /// The next root signs; the one before stays trusted until its last leaf is over.
    Switched {
        /// Since when.
        since: SystemTime,
        /// The end of the old root's last leaf.
        until: SystemTime,
    },
}

/// What the store holds. `First` is what versions before rotation wrote.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Now(Kept),
    Files(KeptFiles),
    First(KeptRoot),
}

/// Of an authority in files: SHA-256 of the roots' public keys, hex.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeptFiles {
    roots_sha256: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    active: KeptRoot,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<KeptRoot>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<KeptRoot>,
    step: KeptStep,
    leaf_lifetime_max_secs: u64,
}

/// DER and PKCS#8 in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeptRoot {
    certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cross_signed: Option<String>,
}

/// Moments in Unix milliseconds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum KeptStep {
    Steady,
    Announced { since: u64 },
    Switched { since: u64, until: u64 },
}

impl Material {
    /// The key under which it is kept.
    pub(super) fn key() -> Key {
        Key::new(Space::Ca, "root")
    }

    /// The first material of a mesh, as the store is to keep it.
    pub(super) fn first(
        trust_domain: &TrustDomain,
        keys: &Keys,
        now: SystemTime,
    ) -> Result<Vec<u8>, CaError> {
        if let Keys::Files(given) = keys {
            return Ok(encode_files(given));
        }
        let active = Root { signer: Arc::new(Signer::root(trust_domain, now)?), cross_signed: None };
        Ok(encode(&active, None, &[], Step::Steady, Duration::ZERO, keys.seal()))
    }

    /// Reads it; `None` if there is none.
    pub(super) fn read(state: &State, keys: &Keys) -> Result<Option<Self>, CaError> {
        let Some(entry) = state.entries.get(&Self::key()) else { return Ok(None) };
        let damaged = |error: serde_json::Error| CaError::Material(format!("root: {error}"));
        let kept = match (serde_json::from_slice(&entry.value).map_err(damaged)?, keys) {
            (Stored::Files(kept), Keys::Files(given)) => {
                return Self::of_files(state, entry.revision, &kept, given).map(Some);
            }
            (Stored::Files(_), _) => return Err(CaError::InFiles),
            (_, Keys::Files(_)) => return Err(CaError::InStore),
            (Stored::Now(kept), _) => kept,
            (Stored::First(active), _) => Kept {
                active,
                next: None,
                former: Vec::new(),
                step: KeptStep::Steady,
                leaf_lifetime_max_secs: 0,
            },
        };
        let plain = std::iter::once(&kept.active).chain(&kept.next).any(|root| root.key.is_some());
        let root = |root: KeptRoot| root.root(keys.seal());
        Ok(Some(Self {
            at: state.at.clone(),
            revision: entry.revision,
            differs: plain && keys.seal().is_some(),
            keys: keys.clone(),
            active: root(kept.active)?,
            next: kept.next.map(root).transpose()?,
            former: kept.former.into_iter().map(KeptRoot::former).collect::<Result<_, _>>()?,
            step: match kept.step {
                KeptStep::Steady => Step::Steady,
                KeptStep::Announced { since } => Step::Announced { since: moment(since) },
                KeptStep::Switched { since, until } => {
                    Step::Switched { since: moment(since), until: moment(until) }
                }
            },
            leaf_lifetime_max: Duration::from_secs(kept.leaf_lifetime_max_secs),
            revocations: Revocations::read(state)?,
            federated: federated::read(state),
        }))
    }

    /// Begins a rotation: a new root is trusted, and signed by the present one.
    pub(super) fn announce(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Vec<u8>, CaError> {
        let signer = Arc::new(Signer::root(trust_domain, now)?);
        let cross_signed = self.active.signer.cross_sign(&signer, trust_domain, now)?;
        let next = Root { signer, cross_signed: Some(cross_signed) };
        let step = Step::Announced { since: now };
        Ok(encode(&self.active, Some(&next), &self.former, step, self.leaf_lifetime_max, self.seal()))
    }

    /// The next root signs from now on; `None` if there is none.
    pub(super) fn switch(&self, now: SystemTime, skew: Duration) -> Option<Vec<u8>> {
        let next = self.next.as_ref()?;
        let mut former = self.former.clone();
        former.push(Former {
            certificate: self.active.signer.certificate.clone(),
            cross_signed: self.active.cross_signed.clone(),
        });
        former.drain(..former.len().saturating_sub(FORMER_MAX));
        let until = (now + self.leaf_lifetime_max + skew).min(self.active.signer.not_after);
        let step = Step::Switched { since: now, until };
        Some(encode(next, None, &former, step, self.leaf_lifetime_max, self.seal()))
    }

    /// The rotation is over: the former root is trusted no more.
    pub(super) fn retire(&self) -> Vec<u8> {
        encode(&self.active, None, &self.former, Step::Steady, self.leaf_lifetime_max, self.seal())
    }

    fn of_files(state: &State, revision: u64, kept: &KeptFiles, given: &Arc<Given>) -> Result<Self, CaError> {
        let ours: Vec<String> = given.hashes.iter().map(|hash| hex(hash)).collect();
        if !ours.iter().any(|hash| kept.roots_sha256.contains(hash)) {
            return Err(CaError::OtherRoots { known: kept.roots_sha256.join(", ") });
        }
        Ok(Self {
            at: state.at.clone(),
            revision,
            active: Root { signer: Arc::clone(&given.signer), cross_signed: None },
            next: None,
            former: Vec::new(),
            step: Step::Steady,
            leaf_lifetime_max: Duration::ZERO,
            revocations: Revocations::read(state)?,
            federated: federated::read(state),
            differs: ours != kept.roots_sha256,
            keys: Keys::Files(Arc::clone(given)),
        })
    }

    /// The authority in files, if it is there.
    pub(super) fn given(&self) -> Option<&Given> {
        match &self.keys {
            Keys::Files(given) => Some(given),
            _ => None,
        }
    }

    /// Whether the active signer signs leaves itself.
    pub(super) fn signs_leaves(&self) -> bool {
        self.given().is_some_and(|given| given.signs_leaves)
    }

    fn seal(&self) -> Option<&Seal> {
        self.keys.seal()
    }

    /// What the store is to hold instead: leaves live longer than they ever did, keys are to be sealed that
    /// were not, or the files hold other roots.
    pub(super) fn changed(&self, lifetime: Duration) -> Option<Vec<u8>> {
        if let Some(given) = self.given() {
            return self.differs.then(|| encode_files(given));
        }
        let lifetime = lifetime.max(self.leaf_lifetime_max);
        let differs = self.differs || lifetime > self.leaf_lifetime_max;
        let next = self.next.as_ref();
        differs.then(|| encode(&self.active, next, &self.former, self.step, lifetime, self.seal()))
    }

    /// Every root that is trusted, the one that signs first.
    pub(super) fn bundle(&self) -> Vec<CertificateDer<'static>> {
        if let Some(given) = self.given() {
            return given.roots.clone();
        }
        let next = self.next.iter().map(|next| &next.signer.certificate);
        let old = self.former.last().filter(|_| matches!(self.step, Step::Switched { .. }));
        let others = next.chain(old.map(|old| &old.certificate));
        std::iter::once(&self.active.signer.certificate).chain(others).cloned().collect()
    }

    /// What the version of the trust is: whoever has the same roots and revocations has the same.
    pub(super) fn version(&self) -> String {
        let mut hashes: Vec<_> = self.bundle().iter().map(|root| sha256(root)).collect();
        hashes.sort_unstable();
        let revoked = self.revocations.revoked.texts().map(|text| sha256(text.as_bytes()));
        hashes.extend(revoked);
        for (domain, bundle) in &self.federated {
            hashes.push(sha256(domain.as_str().as_bytes()));
            hashes.extend(bundle.roots.iter().map(|root| sha256(root)));
        }
        hex(&sha256(&hashes.concat())[..16])
    }

    /// Whether this is later than `other`.
    pub(super) fn is_newer(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.revision, it.revocations.revision);
        let others = self.at.revision > other.at.revision && self.federated != other.federated;
        self.at.epoch != other.at.epoch || of(self) > of(other) || others
    }

    /// What goes with a leaf, so that whoever knows only the root before reaches the one that signed it.
    pub(super) fn bridge(&self) -> Vec<CertificateDer<'static>> {
        if let Some(given) = self.given() {
            return given.above.clone();
        }
        let bridge = self.active.cross_signed.iter();
        bridge.filter(|_| matches!(self.step, Step::Switched { .. })).cloned().collect()
    }

    /// What goes with the registry's own leaf: the way from every former root, and these themselves, for
    /// who knows only the hash of one.
    pub(super) fn path(&self) -> Vec<CertificateDer<'static>> {
        if let Some(given) = self.given() {
            return given.above.iter().chain(&given.roots).cloned().collect();
        }
        let crossed = self.former.iter().filter_map(|former| former.cross_signed.clone());
        let mut path: Vec<_> = self.active.cross_signed.clone().into_iter().chain(crossed).collect();
        path.push(self.active.signer.certificate.clone());
        path.extend(self.former.iter().map(|former| former.certificate.clone()));
        path
    }

    /// The hash that new join tokens name.
    pub(super) fn pin(&self) -> [u8; 32] {
        self.given().map_or(self.active.signer.hash, |given| given.hashes[0])
    }
}

impl KeptRoot {
    fn root(self, seal: Option<&Seal>) -> Result<Root, CaError> {
        let certificate = CertificateDer::from(decode("root certificate", &self.certificate)?);
        let key = match (&self.key, &self.sealed_key, seal) {
            (Some(key), _, _) => decode("root key", key)?,
            (None, Some(_), None) => return Err(CaError::Sealed),
            (None, Some(sealed), Some(seal)) => {
                seal.unseal(&decode("root key", sealed)?, &certificate).ok_or(CaError::OtherSeal)?
            }
            (None, None, _) => return Err(CaError::Material("root key: it is missing".into())),
        };
        let key = KeyPair::try_from(key).map_err(|error| CaError::Material(format!("root key: {error}")))?;
        let cross_signed = self.cross_signed.map(|text| decode("cross-signed root", &text)).transpose()?;
        let cross_signed = cross_signed.map(CertificateDer::from);
        Ok(Root { signer: Arc::new(Signer::read(certificate, key)?), cross_signed })
    }

    fn former(self) -> Result<Former, CaError> {
        let certificate = CertificateDer::from(decode("former root", &self.certificate)?);
        let cross_signed = self.cross_signed.map(|text| decode("cross-signed root", &text)).transpose()?;
        Ok(Former { certificate, cross_signed: cross_signed.map(CertificateDer::from) })
    }
}

/// When a certificate is valid.
pub(super) fn validity(certificate: &CertificateDer<'static>) -> Option<(SystemTime, SystemTime)> {
    let facts = PeerCertificate::parse(std::slice::from_ref(certificate)).ok()?;
    Some((facts.not_before, facts.not_after))
}

fn encode(
    active: &Root,
    next: Option<&Root>,
    former: &[Former],
    step: Step,
    leaf_lifetime_max: Duration,
    seal: Option<&Seal>,
) -> Vec<u8> {
    let text = |der: &CertificateDer<'_>| STANDARD.encode(der);
    let root = |root: &Root| KeptRoot {
        certificate: text(&root.signer.certificate),
        key: seal.is_none().then(|| STANDARD.encode(root.signer.key())),
        sealed_key: seal.map(|seal| STANDARD.encode(seal.seal(root.signer.key(), &root.signer.certificate))),
        cross_signed: root.cross_signed.as_ref().map(text),
    };
    let kept = Kept {
        active: root(active),
        next: next.map(root),
        former: former
            .iter()
            .map(|former| KeptRoot {
                certificate: text(&former.certificate),
                key: None,
                sealed_key: None,
                cross_signed: former.cross_signed.as_ref().map(text),
            })
            .collect(),
        step: match step {
            Step::Steady => KeptStep::Steady,
            Step::Announced { since } => KeptStep::Announced { since: millis(since) },
            Step::Switched { since, until } => {
                KeptStep::Switched { since: millis(since), until: millis(until) }
            }
        },
        leaf_lifetime_max_secs: leaf_lifetime_max.as_secs(),
    };
    serde_json::to_vec(&Stored::Now(kept)).expect("plain fields have a JSON form")
}

fn encode_files(given: &Given) -> Vec<u8> {
    let kept = KeptFiles { roots_sha256: given.hashes.iter().map(|hash| hex(hash)).collect() };
    serde_json::to_vec(&Stored::Files(kept)).expect("plain fields have a JSON form")
}

fn decode(part: &str, text: &str) -> Result<Vec<u8>, CaError> {
    STANDARD.decode(text).map_err(|error| CaError::Material(format!("{part}: {error}")))
}

/// Former roots from which the registry shows the way: each is two certificates in its chain.
const FORMER_MAX: usize = 3;
