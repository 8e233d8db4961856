//! Obtains an identity, keeps it on disk, and renews it in time: the sidecar's own, or one for a
//! program that is not ours.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_model::name::{NodeId, SpiffeId, TrustDomain};
use pillion_net::bootstrap::{self, Credential, JoinError};
use pillion_net::grpc::{Dialer, Security};
use pillion_net::identity::{Identity, IdentityPublisher, IdentityWatch, pem_text};
use pillion_net::resolve::{Resolver, Target};
use pillion_net::revoked::Revoked;
use pillion_net::tls::{ClientTls, Federated, PeerCertificate, Roots, mesh_client_context};
use pillion_xds::mesh::Trust;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::state::StateDir;
use super::trust::Follow;

/// Keeps one identity current.
pub struct Keeper {
    /// Whose it is.
    pub node: NodeId,
    /// Who issues it.
    pub registries: Vec<Target>,
    /// What a first certificate is asked for with; `None`: only a stored identity will do.
    pub credential: Option<Credential>,
    /// Where it is kept.
    pub store: Box<dyn IdentityStore>,
    /// Resolves the registries' names.
    pub resolver: Resolver,
}

/// Where an identity is kept.
pub trait IdentityStore: Send + Sync {
    /// The stored identity, expired or not; `None` if there is none that can be used.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    fn load(&self) -> Result<Option<Identity>, StorageError>;

    /// Replaces it.
    ///
    /// # Errors
    ///
    /// When it cannot be written; the old one is then still there.
    fn save(&self, identity: &Identity) -> Result<(), StorageError>;
}

/// Why an identity could not be stored or read, with what and where.
pub type StorageError = Box<dyn std::error::Error + Send + Sync>;

/// Why a sidecar has no identity and will not get one.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFailure {
    /// The registry refuses.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Nothing stored, and nothing to ask with.
    #[error(
        "no identity is stored and no join token is given: pass --join-token (or PILLION_JOIN_TOKEN, \
         PILLION_JOIN_TOKEN_FILE); `pillion token create` on the registry's machine makes one"
    )]
    NoCredential,
    /// What is stored cannot be read, or nothing can be stored.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Keeper {
    /// The identity to begin with: the stored one if it is still valid, else a new one.
    ///
    /// Waits for a registry as long as it takes; a refusal is final.
    ///
    /// # Errors
    ///
    /// [`IdentityFailure`] when waiting cannot help.
    pub async fn first(&self) -> Result<Arc<Identity>, IdentityFailure> {
        if let Some(stored) = self.stored()? {
            return Ok(Arc::new(stored));
        }
        let Some(credential) = &self.credential else { return Err(IdentityFailure::NoCredential) };
        let mut wait = WAIT_MIN;
        loop {
            match bootstrap::join(&self.registries, credential, &self.node, &self.resolver).await {
                Ok(identity) => {
                    self.store.save(&identity)?;
                    return Ok(Arc::new(identity));
                }
                Err(error) if error.is_final() => return Err(error.into()),
                Err(error) => {
                    let registries: Vec<String> = self.registries.iter().map(Target::to_string).collect();
                    let (registries, why) = (registries.join(", "), chain(&error));
                    warn!("no identity yet, waiting for the registry at {registries}: {why}");
                }
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// Renews at about half of the lifetime, for ever; a failure is tried again until the end. Follows
    /// whom the mesh trusts.
    pub async fn keep(self, publisher: IdentityPublisher, stop: CancellationToken) {
        let watch = publisher.subscribe();
        let dialer = registry_dialer(self.registries.clone(), watch.clone(), self.resolver.clone());
        let (told, trust) = watch::channel(None);
        let (in_force, version) = watch::channel(String::new());
        let node = self.node.to_string();
        let follow = Follow { dialer: dialer.clone(), identity: watch, node, told, in_force: version };
        let renew = self.renewing(&publisher, &dialer, trust, in_force);
        stop.run_until_cancelled(Box::pin(async { tokio::join!(renew, follow.run()) })).await;
    }

    /// Puts renewed certificates and what is told of the trust into force.
    async fn renewing(
        &self,
        publisher: &IdentityPublisher,
        dialer: &Dialer,
        mut trust: watch::Receiver<Option<Trust>>,
        in_force: watch::Sender<String>,
    ) {
        let watch = publisher.subscribe();
        let (mut wait, mut stored) = (WAIT_MIN, true);
        while let Some(current) = watch.current() {
            let due = current.renew_at(fastrand::f64());
            let pause = due.duration_since(SystemTime::now()).unwrap_or_else(|_| jittered(wait));
            // Clocks jump: look again at least every so often.
            tokio::select! {
                () = tokio::time::sleep(pause.min(LOOK_AGAIN)) => {}
                Ok(()) = trust.changed() => {
                    let told = trust.borrow_and_update().clone();
                    if let Some(told) = told {
                        stored &= self.trust(publisher, &current, &told, &in_force);
                    }
                    continue;
                }
            }
            if !stored {
                stored = self.save(&current);
            }
            if SystemTime::now() < due {
                continue;
            }
            match self.renew(dialer, &current).await {
                Ok(identity) => {
                    wait = WAIT_MIN;
                    // Only the roots come with a certificate.
                    let revoked = Arc::clone(&current.bundle.revoked);
                    let identity = identity.with_trust(&identity.bundle.roots, revoked).unwrap_or(identity);
                    let federated = Arc::clone(current.federated());
                    let identity = identity.with_federated(federated).unwrap_or(identity);
                    stored = self.save(&identity);
                    info!(id = %identity.svid.id, "identity renewed");
                    publisher.publish(Arc::new(identity));
                }
                Err(error) => {
                    wait = (wait * 2).min(RENEW_WAIT_MAX);
                    let error = chain(&error);
                    match revoked(&current) {
                        Some(what) => {
                            warn!(
                                what,
                                error,
                                "this identity is revoked, so it is not renewed; `pillion ca unrevoke` takes that back"
                            );
                        }
                        None => warn!(error, "the identity could not be renewed, trying again"),
                    }
                }
            }
        }
    }

    /// Puts into force whom to trust, and says so. Tells whether it could be stored.
    fn trust(
        &self,
        publisher: &IdentityPublisher,
        current: &Identity,
        told: &Trust,
        in_force: &watch::Sender<String>,
    ) -> bool {
        let mut stored = true;
        let have: BTreeSet<&[u8]> = current.bundle.roots.iter().map(|root| &root[..]).collect();
        let revoked = Arc::new(Revoked::new(&told.revoked));
        let federated = federated(told.federated.iter().map(|it| (it.trust_domain.as_str(), &it.roots[..])));
        if have != told.roots.iter().map(Vec::as_slice).collect()
            || !revoked.texts().eq(current.bundle.revoked.texts())
            || certificates(&federated).ne(certificates(current.federated()))
        {
            let trusted = current.with_trust(&told.roots, revoked);
            let identity = match trusted.and_then(|identity| identity.with_federated(federated)) {
                Ok(identity) => identity,
                Err(error) => {
                    warn!(error = chain(&error), "the roots that the registry tells cannot be used");
                    return stored;
                }
            };
            stored = self.save(&identity);
            let (roots, revoked) = (identity.bundle.roots.len(), identity.bundle.revoked.texts().count());
            let federated = identity.federated().len();
            info!(roots, revoked, federated, "whom to trust has changed");
            publisher.publish(Arc::new(identity));
        }
        in_force.send_replace(told.version.clone());
        stored
    }

    /// By the current SVID; once that has ended, by the join token again.
    async fn renew(&self, dialer: &Dialer, current: &Identity) -> Result<Identity, JoinError> {
        match &self.credential {
            Some(credential) if !current.is_valid_at(SystemTime::now()) => {
                bootstrap::join(&self.registries, credential, &self.node, &self.resolver).await
            }
            _ => bootstrap::renew(dialer.connect().await?, &self.node).await,
        }
    }

    /// The stored identity, if it is this service's and still valid.
    fn stored(&self) -> Result<Option<Identity>, StorageError> {
        // One of another instance cannot be renewed for this one.
        let ours = |identity: &Identity| {
            let leaf = PeerCertificate::parse(&identity.svid.chain).ok();
            let instance = leaf.and_then(|leaf| leaf.instance());
            identity.svid.id.service_name() == Some(&self.node.service)
                && instance.is_none_or(|instance| instance == self.node.to_string())
        };
        let stored = self.store.load()?;
        Ok(stored.filter(|identity| ours(identity) && identity.is_valid_at(SystemTime::now())))
    }

    /// Stores a renewed identity, and tells whether that went well; it is in force either way.
    fn save(&self, identity: &Identity) -> bool {
        let saved = self.store.save(identity);
        if let Err(error) = &saved {
            warn!(error = chain(&**error), "the renewed identity could not be stored, trying again");
        }
        saved.is_ok()
    }
}

/// What of an identity is revoked, as far as it has been told itself.
fn revoked(identity: &Identity) -> Option<String> {
    let leaf = PeerCertificate::parse(&identity.svid.chain).ok()?;
    identity.roots().revoked().names(&leaf).map(str::to_owned)
}

impl IdentityStore for StateDir {
    fn load(&self) -> Result<Option<Identity>, StorageError> {
        let Some(bytes) = self.read(FILE)? else { return Ok(None) };
        let parsed = parse(&bytes);
        if let Err(reason) = &parsed {
            warn!(reason, "the stored identity cannot be used, asking for a new one");
        }
        Ok(parsed.ok())
    }

    fn save(&self, identity: &Identity) -> Result<(), StorageError> {
        let text = json!({
            "trustDomain": identity.bundle.trust_domain.as_str(),
            "zone": identity.zone,
            "chain": identity.chain_pem(),
            "key": identity.key_pem(),
            "roots": identity.roots_pem(),
            "revoked": identity.bundle.revoked.texts().collect::<Vec<_>>(),
            "federated": federated_pem(identity),
        });
        Ok(self.write(FILE, text.to_string().as_bytes())?)
    }
}

/// Dials the registry with the identity of the moment; the registry must prove its own.
pub(super) fn registry_dialer(
    registries: Vec<Target>,
    identity: IdentityWatch,
    resolver: Resolver,
) -> Dialer {
    let trust_domain =
        identity.current().map_or_else(TrustDomain::default, |identity| identity.bundle.trust_domain.clone());
    let context = mesh_client_context(&[SpiffeId::registry(trust_domain)], "", &["h2"]);
    Dialer::new(registries, Security::Mesh(Arc::new(ClientTls::new(context, identity))), resolver)
}

fn parse(bytes: &[u8]) -> Result<Identity, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let text = |field: &str| value[field].as_str().ok_or_else(|| format!("{FILE} has no `{field}`"));
    let trust_domain = TrustDomain::parse(text("trustDomain")?).map_err(|error| error.to_string())?;
    let (chain, key, roots) = (text("chain")?, text("key")?, text("roots")?);
    let identity =
        Identity::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes(), trust_domain, text("zone")?)
            .map_err(|error| error.to_string())?;
    let revoked = value["revoked"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let stored = value["federated"].as_object().into_iter().flatten().map(|(domain, pem)| {
        let roots = CertificateDer::pem_slice_iter(pem.as_str().unwrap_or_default().as_bytes());
        let roots = roots.collect::<Result<Vec<_>, _>>();
        Ok((domain, roots.map_err(|error| format!("{FILE}: federated.{domain}: {error}"))?))
    });
    let stored = stored.collect::<Result<Vec<_>, String>>()?;
    identity
        .with_trust(&identity.bundle.roots, Arc::new(Revoked::new(revoked)))
        .and_then(|it| {
            it.with_federated(federated(stored.iter().map(|(domain, roots)| (domain.as_str(), &roots[..]))))
        })
        .map_err(|error| error.to_string())
}

/// The roots of other trust domains. One that cannot be used is left out, and so nobody of it trusted.
fn federated<'a, T: AsRef<[u8]> + 'a>(told: impl IntoIterator<Item = (&'a str, &'a [T])>) -> Arc<Federated> {
    let usable = told.into_iter().filter_map(|(domain, roots)| {
        let roots = roots.iter().map(|der| CertificateDer::from(der.as_ref().to_vec())).collect();
        let made = TrustDomain::parse(domain).map_err(|error| error.to_string()).and_then(|domain| {
            let roots = Roots::federated(&domain, roots).map_err(|error| error.to_string())?;
            Ok((domain, Arc::new(roots)))
        });
        made.inspect_err(|error| warn!(domain, error, "the roots of a federated mesh cannot be used")).ok()
    });
    Arc::new(usable.collect())
}

/// What two sets of federated roots are compared by.
fn certificates(federated: &Federated) -> impl Iterator<Item = (&TrustDomain, &[CertificateDer<'static>])> {
    federated.iter().map(|(domain, roots)| (domain, roots.certificates()))
}

fn federated_pem(identity: &Identity) -> Value {
    let pem = certificates(identity.federated()).map(|(domain, roots)| {
        let text: String = roots.iter().map(|der| pem_text("CERTIFICATE", der)).collect();
        (domain.to_string(), Value::from(text))
    });
    Value::Object(pem.collect())
}

/// An error with its sources, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// 50 to 100 % of the time, so that many sidecars do not come back together.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The identity's file in the state directory.
const FILE: &str = "identity.json";
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(5);
const RENEW_WAIT_MAX: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_secs(60);
