//! Who this process is: its SVID (certificate and key), the roots it trusts, and the zone it is in.
//!
//! An [`Identity`] is checked when it is made, so whoever holds one can use it: the leaf follows the
//! SPIFFE rules, the key belongs to it, and the chain ends in the bundle. Whether it is still valid
//! is a matter of time and asked with [`Identity::is_valid_at`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_model::name::{SpiffeId, TrustDomain};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::watch;

use crate::revoked::Revoked;
use crate::tls::{self, Federated, PeerCertificate, PeerError, Roots};

/// A certificate chain with its key: proof of one SPIFFE id.
#[derive(Clone)]
pub struct Svid {
    /// The identity proved.
    pub id: SpiffeId,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: Arc<PrivateKeyDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

/// The root certificates of one trust domain.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    /// Whose roots these are.
    pub trust_domain: TrustDomain,
    /// Every root, DER. More than one during a rotation.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whose certificates are good no more.
    pub revoked: Arc<Revoked>,
}

/// An SVID, the bundle it belongs to and the mesh's DNS zone: what a process needs to take part.
#[derive(Clone)]
pub struct Identity {
    /// Our certificate and key.
    pub svid: Svid,
    /// Whom we trust.
    pub bundle: TrustBundle,
    /// The mesh's DNS zone.
    pub zone: String,
    certified: Arc<CertifiedKey>,
    roots: Arc<Roots>,
    /// Other trust domains' roots, used only where a TLS context names them.
    federated: Arc<Federated>,
    all_roots: Arc<Roots>,
}

/// Why certificates, key and roots do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain has no certificate.
    #[error("the certificate chain is empty; want the leaf first")]
    EmptyChain,
    /// The leaf breaks a rule or does not chain to the roots.
    #[error("the certificate is not usable in trust domain {trust_domain}")]
    Certificate {
        /// The bundle's trust domain.
        trust_domain: TrustDomain,
        /// What is wrong with it.
        source: PeerError,
    },
    /// The leaf names something that is no identity of this mesh.
    #[error("the certificate names `{found}`, which is no identity of a service or of the registry")]
    Id {
        /// The URI in the certificate.
        found: String,
    },
    /// The key cannot be read, or belongs to another certificate.
    #[error("the private key does not fit the certificate")]
    Key(#[source] rustls::Error),
    /// A root certificate cannot be used.
    #[error("root certificate {at} cannot be read: {reason}")]
    Root {
        /// Which one, from 0.
        at: usize,
        /// Why not.
        reason: String,
    },
    /// There is no root at all.
    #[error("the trust bundle has no root certificate")]
    NoRoots,
    /// PEM text that cannot be read.
    #[error("cannot read the {what}: {reason}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// The PEM reader's message.
        reason: String,
    },
}

impl Identity {
    /// Makes an identity from a chain (leaf first), its key and the roots, all checked.
    ///
    /// Validity in time is not checked here: an expired identity can still be loaded and shown.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] says which of the parts is wrong and why.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: TrustBundle,
        zone: impl Into<String>,
    ) -> Result<Self, IdentityError> {
        let mut bundle = bundle;
        bundle.revoked = Arc::new(bundle.revoked.among(&bundle.trust_domain, []));
        let roots = Arc::new(Roots::mesh(&bundle)?);
        let refuse =
            |source| IdentityError::Certificate { trust_domain: bundle.trust_domain.clone(), source };
        if chain.is_empty() {
            return Err(IdentityError::EmptyChain);
        }
        let leaf = PeerCertificate::parse(&chain).map_err(refuse)?;
        let at = leaf.not_before + leaf.lifetime() / 2;
        tls::verify_svid(&chain, &roots, unix_time(at)).map_err(refuse)?;
        let id = leaf
            .spiffe_id()
            .ok_or_else(|| IdentityError::Id { found: leaf.uri_sans.first().cloned().unwrap_or_default() })?;
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &tls::provider())
            .map_err(IdentityError::Key)?;
        let svid =
            Svid { id, chain, key: Arc::new(key), not_before: leaf.not_before, not_after: leaf.not_after };
        let (certified, all_roots) = (Arc::new(certified), Arc::clone(&roots));
        Ok(Self { svid, bundle, zone: zone.into(), certified, roots, federated: Arc::default(), all_roots })
    }

    /// The same, knowing these other trust domains. Whoever is of none of them is trusted no more.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoRoots`] and [`IdentityError::Root`], of our own bundle.
    pub fn with_federated(&self, federated: Arc<Federated>) -> Result<Self, IdentityError> {
        let mut bundle = self.bundle.clone();
        let mut federated = federated;
        if federated.contains_key(&bundle.trust_domain) {
            Arc::make_mut(&mut federated).remove(&bundle.trust_domain); // nobody else speaks for ours
        }
        bundle.revoked = Arc::new(bundle.revoked.among(&bundle.trust_domain, federated.keys().cloned()));
        let roots = Arc::new(Roots::mesh(&bundle)?);
        let all_roots = Arc::new(roots.beside(Arc::clone(&federated)));
        Ok(Self { bundle, roots, federated, all_roots, ..self.clone() })
    }

    /// The same certificate and key with other roots, DER, and others that are trusted no more.
    ///
    /// # Errors
    ///
    /// As [`Identity::new`]: the certificate must chain to one of them.
    pub fn with_trust<T: AsRef<[u8]>>(
        &self,
        roots: &[T],
        revoked: Arc<Revoked>,
    ) -> Result<Self, IdentityError> {
        let roots = roots.iter().map(|der| CertificateDer::from(der.as_ref().to_vec())).collect();
        let bundle = TrustBundle { trust_domain: self.bundle.trust_domain.clone(), roots, revoked };
        let svid = self.svid.clone();
        let made = Self::new(svid.chain.clone(), svid.key.clone_key(), bundle, self.zone.clone())?;
        Self { svid, ..made }.with_federated(Arc::clone(&self.federated))
    }

    /// Reads an identity from PEM texts: chain (leaf first), key, roots.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Pem`] for text that cannot be read, else as [`Identity::new`].
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        roots: &[u8],
        trust_domain: TrustDomain,
        zone: impl Into<String>,
    ) -> Result<Self, IdentityError> {
        let pem = |what| {
            move |error: rustls_pki_types::pem::Error| IdentityError::Pem { what, reason: error.to_string() }
        };
        let certificates = |text: &[u8], what| {
            CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(pem(what))
        };
        let chain = certificates(chain, "certificate chain")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(pem("private key"))?;
        let roots = certificates(roots, "root certificates")?;
        Self::new(chain, key, TrustBundle { trust_domain, roots, revoked: Arc::default() }, zone)
    }

    /// The chain as PEM text, leaf first.
    pub fn chain_pem(&self) -> String {
        self.svid.chain.iter().map(|der| pem_text("CERTIFICATE", der)).collect()
    }

    /// The roots as PEM text.
    pub fn roots_pem(&self) -> String {
        self.bundle.roots.iter().map(|der| pem_text("CERTIFICATE", der)).collect()
    }

    /// The key as PEM text (PKCS#8 unless it was loaded in another form). Write it with mode 0600.
    pub fn key_pem(&self) -> String {
        let label = match *self.svid.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem_text(label, self.svid.key.secret_der())
    }

    /// Whether the SVID is valid at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.svid.not_before <= now && now < self.svid.not_after
    }

    /// When to renew: at half of the lifetime, moved by up to a tenth of the lifetime either way.
    /// `draw` is a random number from 0 to 1; it spreads the renewals of many processes.
    pub fn renew_at(&self, draw: f64) -> SystemTime {
        let lifetime = self.lifetime();
        self.svid.not_before + lifetime.mul_f64(0.4 + 0.2 * draw.clamp(0.0, 1.0))
    }

    /// How long the SVID is valid from beginning to end.
    pub fn lifetime(&self) -> Duration {
        self.svid.not_after.duration_since(self.svid.not_before).unwrap_or_default()
    }

    /// The chain and key as rustls wants them.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// The roots of other trust domains.
    pub fn federated(&self) -> &Arc<Federated> {
        &self.federated
    }

    /// Our roots and those of other trust domains, each for its own peers.
    pub fn all_roots(&self) -> Arc<Roots> {
        Arc::clone(&self.all_roots)
    }

    /// The roots of one other trust domain; one that is not known has none, so nobody of it is trusted.
    pub fn federated_roots(&self, trust_domain: &TrustDomain) -> Arc<Roots> {
        let known = self.federated.get(trust_domain).map(Arc::clone);
        let none =
            || Roots::federated(trust_domain, Vec::new()).map(Arc::new).expect("no certificate is at fault");
        known.unwrap_or_else(none)
    }

    /// The roots as the verifier wants them.
    pub fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.roots)
    }
}

/// Without the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &format_args!("{}", self.svid.id))
            .field("not_after", &self.svid.not_after)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

/// Without the key.
impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &format_args!("{}", self.id))
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Makes a channel that carries the identity in force; at first there is none.
pub fn channel() -> (IdentityPublisher, IdentityWatch) {
    let (sender, receiver) = watch::channel(None);
    (IdentityPublisher(sender), IdentityWatch(receiver))
}

/// The one writer of the identity in force.
#[derive(Debug)]
pub struct IdentityPublisher(watch::Sender<Option<Arc<Identity>>>);

impl IdentityPublisher {
    /// Replaces the identity in force.
    pub fn publish(&self, identity: Arc<Identity>) {
        self.0.send_replace(Some(identity));
    }

    /// Another reader.
    pub fn subscribe(&self) -> IdentityWatch {
        IdentityWatch(self.0.subscribe())
    }
}

/// Reads the identity in force. Cheap to clone.
#[derive(Clone, Debug)]
pub struct IdentityWatch(watch::Receiver<Option<Arc<Identity>>>);

impl IdentityWatch {
    /// A watch whose identity never changes.
    pub fn fixed(identity: Arc<Identity>) -> Self {
        let (sender, receiver) = watch::channel(Some(identity));
        drop(sender);
        Self(receiver)
    }

    /// The identity in force, if there is one yet.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.0.borrow().clone()
    }

    /// Waits for the next change; `None` once the publisher is gone.
    pub async fn changed(&mut self) -> Option<Arc<Identity>> {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }

    /// Waits until there is an identity; `None` if the publisher went without ever having one.
    pub async fn first(&mut self) -> Option<Arc<Identity>> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Tells when another certificate takes the place of the one before; other roots alone are no reason.
#[derive(Debug)]
pub struct Replacements {
    watch: IdentityWatch,
    seen: Option<Arc<PrivateKeyDer<'static>>>,
}

impl Replacements {
    /// Those after the certificate in force now.
    pub fn new(watch: IdentityWatch) -> Self {
        let seen = watch.current().map(|identity| Arc::clone(&identity.svid.key));
        Self { watch, seen }
    }

    /// Waits for the next one. Dropping the wait loses none.
    pub async fn next(&mut self) {
        while let Some(identity) = self.watch.changed().await {
            let key = &identity.svid.key;
            if !self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, key)) {
                self.seen = Some(Arc::clone(key));
                return;
            }
        }
        std::future::pending().await
    }
}

/// A moment as the certificate verifier counts: whole seconds since 1970, 0 before.
pub(crate) fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// One PEM block (RFC 7468): base64 in lines of 64.
pub fn pem_text(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap_or_default());
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn an_identity_survives_pem_and_knows_when_to_renew() {
        let ca = TestCa::new("mesh.internal");
        let identity = ca.service("shop", "orders");
        let again = Identity::from_pem(
            identity.chain_pem().as_bytes(),
            identity.key_pem().as_bytes(),
            identity.roots_pem().as_bytes(),
            TrustDomain::default(),
            "mesh.internal",
        )
        .expect("what we wrote");
        assert_eq!(again.svid.id.to_string(), "spiffe://mesh.internal/ns/shop/svc/orders");
        assert_eq!(again.svid.not_after, identity.svid.not_after);
        assert_eq!(identity.renew_at(0.5), identity.svid.not_before + identity.lifetime() / 2);
        assert!(identity.renew_at(0.0) < identity.renew_at(1.0));
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_part() {
        let ca = TestCa::new("mesh.internal");
        let (web, orders) = (ca.service("shop", "web"), ca.service("shop", "orders"));
        let bundle = || ca.bundle();
        let make = |chain: &Identity, key: &Identity, bundle| {
            Identity::new(chain.svid.chain.clone(), key.svid.key.clone_key(), bundle, "mesh.internal")
        };
        assert!(matches!(make(&web, &orders, bundle()), Err(IdentityError::Key(_))));
        let foreign = TestCa::new("mesh.internal");
        let error = make(&web, &web, foreign.bundle()).expect_err("another root");
        assert!(matches!(error, IdentityError::Certificate { .. }), "{error}");
        let trust_domain = TrustDomain::default();
        let none = TrustBundle { trust_domain, roots: Vec::new(), revoked: Arc::default() };
        assert!(matches!(make(&web, &web, none), Err(IdentityError::NoRoots)));
        let error = Identity::new(Vec::new(), web.svid.key.clone_key(), bundle(), "z").expect_err("empty");
        assert!(matches!(error, IdentityError::EmptyChain));
    }

    #[tokio::test]
    async fn readers_see_the_identity_in_force() {
        let ca = TestCa::new("mesh.internal");
        let (publisher, mut watch) = channel();
        assert!(watch.current().is_none());
        publisher.publish(Arc::new(ca.service("shop", "web")));
        let first = watch.first().await.expect("published");
        assert_eq!(first.svid.id, watch.current().expect("still there").svid.id);
        publisher.publish(Arc::new(ca.service("shop", "orders")));
        let next = watch.changed().await.expect("published again");
        assert!(next.svid.id.to_string().ends_with("/orders"));
        drop(publisher);
        assert!(watch.changed().await.is_none());
    }
}
