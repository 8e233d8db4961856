//! The built-in certificate authority: who gets which name, for how long, on what proof.
//!
//! One ECDSA P-256 root, made at the first start and kept in the store, signs an intermediate of each
//! registry, which signs leaves of a day; another root takes its place by a
//! [rotation](Authority::rotate). A certificate request contributes its
//! public key and nothing else. The proof is a join token, the caller's current SVID (for the same
//! service), or, on a registry started with `--open`, the loopback interface. Issuing writes nothing to
//! the store, except that a single-use token is marked used before the answer leaves.

mod followers;
mod keep;
mod material;
mod operator;
mod revocation;
mod root;
mod rotation;
mod seal;
mod service;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pillion_model::name::{DEFAULT_DOMAIN, NodeId, SpiffeId, TrustDomain};
use pillion_net::identity::{Identity, IdentityError, TrustBundle};
use pillion_net::resolve::Target;
use pillion_net::tls::hex;
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::store::{Op, Position, Space, Store, StoreError, Transaction};
use followers::{Acknowledged, Followers};
use material::Material;
use root::{Signer, Subject};
use token::{millis, moment};

pub use keep::{keep_identity, keep_roots, write_roots};
pub use material::Step;
pub use operator::{NewOperator, OperatorInfo, Role};
pub use revocation::{RevokeError, Revoking};
pub use rotation::{Alive, Live, RootStatus, RotateError, Status};
pub use seal::{Seal, SealError};
pub use service::IdentityService;
pub(crate) use token::TTL_WANT;
pub use token::{Binding, NewToken, TokenError, TokenInfo, Tokens};

/// What certificates say, and what answers say about the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain of identities.
    pub trust_domain: TrustDomain,
    /// The mesh's DNS zone.
    pub zone: String,
    /// Lifetime of leaves. Default 24 h.
    pub leaf_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            zone: DEFAULT_DOMAIN.to_owned(),
            leaf_lifetime: LEAF_LIFETIME,
        }
    }
}

/// The authority: its roots, its settings and its join tokens.
pub struct Authority {
    store: Arc<dyn Store>,
    seal: Option<Arc<Seal>>,
    material: watch::Sender<Arc<Material>>,
    /// Signs leaves, below the root of this hash.
    intermediate: Mutex<Option<([u8; 32], Arc<Signer>)>>,
    followers: Arc<Followers>,
    /// What the other registries were told last.
    told: Mutex<Option<Acknowledged>>,
    settings: watch::Sender<Settings>,
    tokens: Tokens,
    clock: Clock,
}

type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A signed leaf.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf first, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// Every root that is trusted, DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// The leaf's serial number, hex.
    pub serial: String,
}

/// What people may know of the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The trust domain of new identities.
    pub trust_domain: TrustDomain,
    /// SHA-256 of the public key of the root that signs, hex: the last part of join tokens.
    pub root_sha256: String,
    /// Start of its validity.
    pub root_not_before: SystemTime,
    /// End of its validity.
    pub root_not_after: SystemTime,
    /// Every root certificate that is trusted, PEM; the one that signs first.
    pub root_pem: String,
    /// Lifetime of leaves.
    pub leaf_lifetime: Duration,
}

/// Why the authority cannot start or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The store refuses.
    #[error("cannot read or write the certificate authority's material")]
    Store(#[from] StoreError),
    /// The material in the store is damaged or of another version.
    #[error(
        "the certificate authority's material in the store cannot be used: {0}; restore the store from a backup"
    )]
    Material(String),
    /// The sealing key is missing.
    #[error("the root's key is sealed; start the registry with the --seal-key-file it was sealed with")]
    Sealed,
    /// It was sealed by another key, or changed.
    #[error("the root's key cannot be unsealed: --seal-key-file holds another key than it was sealed with")]
    OtherSeal,
    /// Encoding or signing failed.
    #[error("cannot make a certificate")]
    Encode(#[from] rcgen::Error),
    /// The certificate request cannot be used.
    #[error("the certificate request cannot be used: {0}")]
    Request(String),
    /// Who asks was revoked.
    #[error("{0} is revoked; `pillion ca unrevoke` takes that back")]
    Revoked(String),
    /// Our own certificate is not usable, such as by a clock far off.
    #[error("the registry's own certificate is not usable")]
    Identity(#[from] IdentityError),
}

impl Authority {
    /// Reads the authority from the store, or makes it there at the first start.
    ///
    /// # Errors
    ///
    /// [`CaError`]: the store, or what is in it.
    pub async fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Arc<Self>, CaError> {
        Self::open_sealed(store, settings, None).await
    }

    /// The same, with a key that seals those of the roots in the store.
    ///
    /// # Errors
    ///
    /// As [`Authority::open`]; [`CaError::OtherSeal`] if it is not the key that sealed them.
    pub async fn open_sealed(
        store: Arc<dyn Store>,
        settings: Settings,
        seal: Option<Seal>,
    ) -> Result<Arc<Self>, CaError> {
        Self::open_with_clock(store, settings, seal, Arc::new(SystemTime::now)).await
    }

    async fn open_with_clock(
        store: Arc<dyn Store>,
        settings: Settings,
        seal: Option<Seal>,
        clock: Clock,
    ) -> Result<Arc<Self>, CaError> {
        let seal = seal.map(Arc::new);
        let material = load_or_make(&*store, &settings.trust_domain, seal.as_ref(), clock()).await?;
        let tokens = Tokens::open(Arc::clone(&store), material.pin(), Arc::clone(&clock)).await?;
        let authority = Self {
            store,
            seal,
            material: watch::Sender::new(Arc::new(material)),
            intermediate: Mutex::default(),
            followers: Arc::default(),
            told: Mutex::default(),
            settings: watch::Sender::new(settings),
            tokens,
            clock,
        };
        authority.note_lifetime().await?;
        Ok(Arc::new(authority))
    }

    /// Notes how long leaves live, if they do longer than ever: so long an old root is trusted.
    async fn note_lifetime(&self) -> Result<(), CaError> {
        loop {
            let material = self.material();
            let Some(next) = material.with_lifetime(self.settings().leaf_lifetime) else { return Ok(()) };
            let mut transaction = Transaction::default();
            let key = Material::key();
            transaction.require(key.clone(), Some(material.revision)).push(Op::put(key, next));
            match self.store.commit(transaction).await {
                // Another registry has changed it: look again.
                Ok(_) | Err(StoreError::Conflict { .. }) => drop(self.reload().await?),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the roots as the store has them, and tells as of when that is.
    async fn reload(&self) -> Result<Position, CaError> {
        let state = self.store.load_space(Space::Ca).await?;
        let Some(read) = Material::read(&state, self.seal.as_ref())? else { return Ok(state.at) };
        self.tokens.pin(read.pin());
        self.material.send_if_modified(|material| {
            let newer = read.is_newer(material);
            if newer {
                *material = Arc::new(read);
            }
            newer
        });
        Ok(state.at)
    }

    fn material(&self) -> Arc<Material> {
        Arc::clone(&self.material.borrow())
    }

    fn told(&self) -> MutexGuard<'_, Option<Acknowledged>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The join tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Settings for what is issued from now on. The registry renews its own certificate at once.
    pub fn configure(&self, settings: Settings) {
        self.settings.send_if_modified(|current| {
            let changed = *current != settings;
            *current = settings;
            changed
        });
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.settings.borrow().clone()
    }

    /// What people may know.
    pub fn info(&self) -> Info {
        let (settings, material) = (self.settings(), self.material());
        let signer = &material.active.signer;
        let pem = |root: &CertificateDer<'_>| pillion_net::identity::pem_text("CERTIFICATE", root);
        Info {
            trust_domain: settings.trust_domain,
            root_sha256: hex(&signer.hash),
            root_not_before: signer.not_before,
            root_not_after: signer.not_after,
            root_pem: material.bundle().iter().map(pem).collect(),
            leaf_lifetime: settings.leaf_lifetime,
        }
    }

    /// Every root of the trust domain that is trusted.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.material().bundle()
    }

    /// Signs the public key of `csr` (PKCS#10, DER) for an instance of a service. Whoever calls has seen the proof.
    ///
    /// # Errors
    ///
    /// [`CaError::Request`] when the request is not one, its signature is wrong, or its key is of a
    /// kind we do not sign.
    pub fn issue(&self, node: &NodeId, csr: &[u8]) -> Result<Issued, CaError> {
        let settings = self.settings();
        let key = root::public_key(csr).map_err(CaError::Request)?;
        let id = SpiffeId::service(settings.trust_domain, node.service.clone());
        let material = self.material();
        let names = [id.to_string(), node.to_string()];
        if let Some(what) = names.into_iter().find(|name| material.revocations.revoked.contains(name)) {
            return Err(CaError::Revoked(what));
        }
        let subject = Subject { id: &id, instance: Some(node.instance.as_str()), dns: &[], ips: &[] };
        let (now, lifetime) = ((self.clock)(), settings.leaf_lifetime);
        let signer = self.signer(&material, lifetime, now)?;
        let leaf = signer.leaf(&key, &subject, lifetime, now)?;
        let mut chain = vec![leaf.certificate, signer.certificate.clone()];
        chain.extend(material.bridge());
        Ok(Issued { chain, roots: material.bundle(), not_after: leaf.not_after, serial: leaf.serial })
    }

    /// What signs leaves: an authority below the active root whose key never leaves this process. It is
    /// replaced while it still outlives every leaf.
    fn signer(
        &self,
        material: &Material,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Arc<Signer>, CaError> {
        let root = &material.active.signer;
        let mut held = self.intermediate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, signer)) = &*held
            && *of == root.hash
            && signer.not_before <= now
            && (now + lifetime * 2 <= signer.not_after || signer.not_after >= root.not_after)
        {
            return Ok(Arc::clone(signer));
        }
        let domain = &self.settings.borrow().trust_domain;
        let made = Arc::new(root.intermediate(domain, lifetime * INTERMEDIATE_LIFETIMES, now)?);
        *held = Some((root.hash, Arc::clone(&made)));
        Ok(made)
    }

    /// Makes the registry's own identity, with a new key: `spiffe://<trust-domain>/registry`, and
    /// `names` so that browsers and `curl --cacert` accept it.
    ///
    /// Its chain includes the root and the way from former ones, so that a sidecar that knows only one
    /// root, or the hash of one, can verify it.
    ///
    /// # Errors
    ///
    /// [`CaError`] when signing fails or the result is not usable.
    pub fn registry_identity(&self, names: &RegistryNames) -> Result<Identity, CaError> {
        let settings = self.settings();
        let key = KeyPair::generate()?;
        let id = SpiffeId::registry(settings.trust_domain.clone());
        let subject = Subject { id: &id, instance: None, dns: &names.dns, ips: &names.ips };
        let material = self.material();
        let (now, lifetime) = ((self.clock)(), settings.leaf_lifetime);
        let signer = self.signer(&material, lifetime, now)?;
        let leaf = signer.leaf(&key, &subject, lifetime, now)?;
        let mut chain = vec![leaf.certificate, signer.certificate.clone()];
        chain.extend(material.path());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let bundle = TrustBundle {
            trust_domain: settings.trust_domain,
            roots: material.bundle(),
            revoked: Arc::clone(&material.revocations.revoked),
        };
        Ok(Identity::new(chain, key, bundle, settings.zone)?)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = hex(&self.material().pin());
        f.debug_struct("Authority").field("root_sha256", &root).finish_non_exhaustive()
    }
}

/// Names and addresses under which the registry is called by clients that check host names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryNames {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl RegistryNames {
    /// Loopback, `localhost` and the advertised names or addresses.
    pub fn new(advertised: &[Target]) -> Self {
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        let mut names = Self { dns: vec!["localhost".to_owned()], ips: loopback.to_vec() };
        for target in advertised {
            match target.host.parse() {
                Ok(ip) if !names.ips.contains(&ip) => names.ips.push(ip),
                Err(_) if !names.dns.contains(&target.host) => names.dns.push(target.host.clone()),
                _ => {}
            }
        }
        names
    }
}

/// Reads the roots; makes the first if there is none. Of several registries that start at once on one
/// store, one makes it and the others use it.
async fn load_or_make(
    store: &dyn Store,
    trust_domain: &TrustDomain,
    seal: Option<&Arc<Seal>>,
    now: SystemTime,
) -> Result<Material, CaError> {
    loop {
        if let Some(material) = Material::read(&store.load_space(Space::Ca).await?, seal)? {
            return Ok(material);
        }
        let first = Material::first(trust_domain, seal.map(Arc::as_ref), now)?;
        let mut transaction = Transaction::default();
        transaction.push(Op::put(Material::key(), first)).require(Material::key(), None);
        match store.commit(transaction).await {
            Ok(_) => tracing::info!(%trust_domain, "made the certificate authority's root"),
            Err(StoreError::Conflict { .. }) => {} // another one was quicker: read it
            Err(error) => return Err(error.into()),
        }
    }
}

/// An intermediate lives so many times as long as its leaves, and signs for the first half of that.
const INTERMEDIATE_LIFETIMES: u32 = 4;
const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
