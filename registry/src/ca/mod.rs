//! The built-in certificate authority: who gets which name, for how long, on what proof.
//!
//! One ECDSA P-256 root, made at the first start and kept in the store, signs an intermediate of each
//! registry, which signs leaves of a day; another root takes its place by a
//! [rotation](Authority::rotate). Or the authority is in [files](CaFiles), which others look after. A
//! certificate request contributes its public key and nothing else. The proof is a join token, the caller's current SVID (for the same
//! service), or, on a registry started with `--open`, the loopback interface. Issuing writes nothing to
//! the store, except that a single-use token is marked used before the answer leaves.

mod federated;
mod files;
mod followers;
mod issue;
mod keep;
mod keys;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use pillion_model::name::{DEFAULT_DOMAIN, TrustDomain};
use pillion_net::identity::IdentityError;
use pillion_net::tls::hex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::store::{Op, Position, Space, Store, StoreError, Transaction};
use followers::{Acknowledged, Followers};
use keys::Keys;
use material::Material;
use root::Signer;
use token::{millis, moment};

pub use federated::TrustedBundle;
pub use files::{CaFiles, FilesError};
pub use issue::{Issued, RegistryNames};
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
    keys: Keys,
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
    /// It is in files, and they are not given.
    #[error(
        "the certificate authority of this mesh is in files; start the registry with --ca-cert and --ca-key"
    )]
    InFiles,
    /// It is in the store, and files are given.
    #[error(
        "the certificate authority of this mesh was made by its first start and is in the store; --ca-cert is \
         for a new mesh: leave it out, or start with an empty data directory or another prefix of etcd"
    )]
    InStore,
    /// The files are those of another mesh.
    #[error(
        "--ca-cert: none of its roots is one that this mesh trusts (sha256 {known}); to change the root, have \
         --ca-chain hold both until everybody knows the new one"
    )]
    OtherRoots {
        /// The first root that the mesh trusts, hex.
        known: String,
    },
    /// The files make no authority.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its time is over.
    #[error("the certificate authority's own certificate has ended: renew what --ca-cert names, or the root")]
    Ended,
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
        Self::open_with_clock(store, settings, Keys::Plain, Arc::new(SystemTime::now)).await
    }

    /// The same, with a key that seals those of the roots in the store.
    ///
    /// # Errors
    ///
    /// As [`Authority::open`]; [`CaError::OtherSeal`] if it is not the key that sealed them.
    pub async fn open_sealed(
        store: Arc<dyn Store>,
        settings: Settings,
        seal: Seal,
    ) -> Result<Arc<Self>, CaError> {
        let keys = Keys::Sealed(Arc::new(seal));
        Self::open_with_clock(store, settings, keys, Arc::new(SystemTime::now)).await
    }

    /// The same, with an authority that is in files: of it the store knows only which roots there are.
    ///
    /// # Errors
    ///
    /// As [`Authority::open`]; [`CaError::Files`] if they make none, [`CaError::OtherRoots`] or
    /// [`CaError::InStore`] if the mesh has another.
    pub async fn open_files(
        store: Arc<dyn Store>,
        settings: Settings,
        files: &CaFiles,
    ) -> Result<Arc<Self>, CaError> {
        let given = files.read(SystemTime::now())?;
        let keys = Keys::Files(Arc::new(given));
        let authority = Self::open_with_clock(store, settings, keys, Arc::new(SystemTime::now)).await?;
        // As whoever meets it will: what the checks of the files left open is told now, not to them.
        authority.registry_identity(&RegistryNames::default())?;
        Ok(authority)
    }

    async fn open_with_clock(
        store: Arc<dyn Store>,
        settings: Settings,
        keys: Keys,
        clock: Clock,
    ) -> Result<Arc<Self>, CaError> {
        let material = load_or_make(&*store, &settings.trust_domain, &keys, clock()).await?;
        let tokens = Tokens::open(Arc::clone(&store), material.pin(), Arc::clone(&clock)).await?;
        material.active.signer.warn_of_its_end(settings.leaf_lifetime, clock());
        let authority = Self {
            store,
            keys,
            material: watch::Sender::new(Arc::new(material)),
            intermediate: Mutex::default(),
            followers: Arc::default(),
            told: Mutex::default(),
            settings: watch::Sender::new(settings),
            tokens,
            clock,
        };
        authority.note_changes().await?;
        Ok(Arc::new(authority))
    }

    /// Notes how long leaves live, if they do longer than ever: so long an old root is trusted. Likewise
    /// which roots there are, if others look after them.
    async fn note_changes(&self) -> Result<(), CaError> {
        loop {
            let material = self.material();
            let Some(next) = material.changed(self.settings().leaf_lifetime) else { return Ok(()) };
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
        let Some(read) = Material::read(&state, &self.keys)? else { return Ok(state.at) };
        self.tokens.pin(read.pin());
        if read.given().is_some() && read.differs {
            tracing::warn!(
                "another registry was started with other roots in its --ca-chain; give all the same"
            );
        }
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
        let roots = material.bundle();
        let (not_before, not_after) =
            material::validity(&roots[0]).unwrap_or((SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH));
        let pem = |root: &CertificateDer<'_>| pillion_net::identity::pem_text("CERTIFICATE", root);
        Info {
            trust_domain: settings.trust_domain,
            root_sha256: hex(&material.pin()),
            root_not_before: not_before,
            root_not_after: not_after,
            root_pem: roots.iter().map(pem).collect(),
            leaf_lifetime: settings.leaf_lifetime,
        }
    }

    /// Every root of the trust domain that is trusted.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.material().bundle()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = hex(&self.material().pin());
        f.debug_struct("Authority").field("root_sha256", &root).finish_non_exhaustive()
    }
}

/// Reads the roots; makes the first if there is none. Of several registries that start at once on one
/// store, one makes it and the others use it.
async fn load_or_make(
    store: &dyn Store,
    trust_domain: &TrustDomain,
    keys: &Keys,
    now: SystemTime,
) -> Result<Material, CaError> {
    loop {
        if let Some(material) = Material::read(&store.load_space(Space::Ca).await?, keys)? {
            return Ok(material);
        }
        let first = Material::first(trust_domain, keys, now)?;
        let mut transaction = Transaction::default();
        transaction.push(Op::put(Material::key(), first)).require(Material::key(), None);
        match store.commit(transaction).await {
            Ok(_) => tracing::info!(%trust_domain, "this mesh has its certificate authority"),
            Err(StoreError::Conflict { .. }) => {} // another one was quicker: read it
            Err(error) => return Err(error.into()),
        }
    }
}

const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
