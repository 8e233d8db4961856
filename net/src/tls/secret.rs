//! Where TLS contexts find certificates and roots: by secret name, in files, in the environment, or
//! written into the context.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use pillion_model::name::TrustDomain;
use pillion_model::tls::{
    ALL_ROOTS_SECRET, Certificate, DataSource, ROOTS_SECRET, Roots as RootsSource, SVID_SECRET,
};
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::verify::PeerError;
use super::{PeerCertificate, TlsError};
use crate::identity::{Identity, IdentityError, TrustBundle};
use crate::revoked::Revoked;

/// Trusted root certificates; the mesh's carry their trust domain, which switches the SPIFFE rules
/// on.
#[derive(Debug)]
pub struct Roots {
    store: RootCertStore,
    trust_domain: Option<TrustDomain>,
    revoked: Arc<Revoked>,
    /// Of other trust domains, each of which counts for its own peers only.
    others: Arc<Federated>,
    /// As given, where they are another trust domain's.
    certificates: Vec<CertificateDer<'static>>,
}

/// The roots of trust domains other than ours.
pub type Federated = BTreeMap<TrustDomain, Arc<Roots>>;

impl Roots {
    /// The mesh's roots.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoRoots`] and [`IdentityError::Root`].
    pub fn mesh(bundle: &TrustBundle) -> Result<Self, IdentityError> {
        let store = store(&bundle.roots).map_err(|(at, reason)| IdentityError::Root { at, reason })?;
        if store.is_empty() {
            return Err(IdentityError::NoRoots);
        }
        let trust_domain = Some(bundle.trust_domain.clone());
        Ok(Self { trust_domain, revoked: Arc::clone(&bundle.revoked), ..Self::of_store(store) })
    }

    fn of_store(store: RootCertStore) -> Self {
        let (revoked, others) = (Arc::default(), Arc::default());
        Self { store, trust_domain: None, revoked, others, certificates: Vec::new() }
    }

    /// The roots of another trust domain; without any, nobody of it is trusted.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Root`].
    pub fn federated(
        trust_domain: &TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let store = store(&certificates).map_err(|(at, reason)| IdentityError::Root { at, reason })?;
        Ok(Self { trust_domain: Some(trust_domain.clone()), certificates, ..Self::of_store(store) })
    }

    /// The certificates of another trust domain's roots.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The same roots, and beside them those of other trust domains for peers of these.
    pub(crate) fn beside(&self, others: Arc<Federated>) -> Self {
        let (trust_domain, revoked) = (self.trust_domain.clone(), Arc::clone(&self.revoked));
        Self { trust_domain, revoked, others, ..Self::of_store(self.store.clone()) }
    }

    /// The roots that count for a peer: those of the trust domain that it says it is of, and no other.
    pub(super) fn of(&self, leaf: &CertificateDer<'_>) -> Result<&Self, PeerError> {
        if self.others.is_empty() {
            return Ok(self);
        }
        let peer = PeerCertificate::parse(std::slice::from_ref(leaf))?;
        let [uri] = &peer.uri_sans[..] else { return Ok(self) };
        let domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        let other = domain.and_then(|domain| TrustDomain::parse(domain).ok());
        Ok(other.and_then(|domain| self.others.get(&domain)).map_or(self, |roots| roots))
    }

    /// Other roots: no SPIFFE rules.
    ///
    /// # Errors
    ///
    /// Which certificate (from 0) cannot be used, and why.
    pub fn plain(certificates: &[CertificateDer<'static>]) -> Result<Self, (usize, String)> {
        Ok(Self::of_store(store(certificates)?))
    }

    /// As rustls wants them.
    pub fn store(&self) -> &RootCertStore {
        &self.store
    }

    /// Who is trusted no more although one of the roots vouches for them.
    pub fn revoked(&self) -> &Arc<Revoked> {
        &self.revoked
    }

    /// The trust domain of the mesh's roots.
    pub fn trust_domain(&self) -> Option<&TrustDomain> {
        self.trust_domain.as_ref()
    }
}

fn store(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, (usize, String)> {
    let mut store = RootCertStore::empty();
    for (at, certificate) in certificates.iter().enumerate() {
        store.add(certificate.clone()).map_err(|error| (at, error.to_string()))?;
    }
    Ok(store)
}

/// Finds secrets (Envoy: SDS) by name. `None`: not known, or not yet.
pub trait Secrets: Send + Sync {
    /// A certificate chain with its key.
    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>>;
    /// Root certificates.
    fn roots(&self, name: &str) -> Option<Arc<Roots>>;
}

impl Secrets for Identity {
    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        (name == SVID_SECRET).then(|| self.certified_key())
    }

    fn roots(&self, name: &str) -> Option<Arc<Roots>> {
        match name {
            ROOTS_SECRET => Some(Self::roots(self)),
            ALL_ROOTS_SECRET => Some(self.all_roots()),
            name => {
                let domain = TrustDomain::parse(name.strip_prefix("spiffe://")?).ok()?;
                Some(self.federated_roots(&domain))
            }
        }
    }
}

/// Knows no secret: for contexts that name files only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn certificate(&self, _name: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn roots(&self, _name: &str) -> Option<Arc<Roots>> {
        None
    }
}

/// Reads a certificate chain with its key.
///
/// # Errors
///
/// [`TlsError`] names the field.
pub fn load_certificate(certificate: &Certificate) -> Result<Arc<CertifiedKey>, TlsError> {
    self::certificate("tls_certificate", certificate, &NoSecrets)
}

/// Reads root certificates that are not the mesh's.
///
/// # Errors
///
/// [`TlsError`] names the field.
pub fn load_roots(source: &DataSource) -> Result<Arc<Roots>, TlsError> {
    roots("validation_context.trusted_ca", &RootsSource::Given(source.clone()), &NoSecrets)
}

pub(super) fn certificate(
    field: &str,
    certificate: &Certificate,
    secrets: &dyn Secrets,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, key) = match certificate {
        Certificate::Secret(name) => {
            return secrets.certificate(name).ok_or_else(|| TlsError::missing(field, name));
        }
        Certificate::Given { chain, key } => (chain, key),
    };
    let (chain_field, key_field) = (format!("{field}.certificate_chain"), format!("{field}.private_key"));
    let chain = certificates(&chain_field, chain)?;
    if chain.is_empty() {
        return Err(TlsError::invalid(&chain_field, "holds no PEM certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&key_field, key)?)
        .map_err(|error| TlsError::invalid(&key_field, format!("no PEM private key: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, &super::provider())
        .map_err(|error| TlsError::invalid(&key_field, format!("does not fit the certificate: {error}")))?;
    Ok(Arc::new(certified))
}

pub(super) fn roots(
    field: &str,
    source: &RootsSource,
    secrets: &dyn Secrets,
) -> Result<Arc<Roots>, TlsError> {
    match source {
        RootsSource::Secret(name) => secrets.roots(name).ok_or_else(|| TlsError::missing(field, name)),
        RootsSource::System => system_roots(field),
        RootsSource::Given(source) => {
            let roots = Roots::plain(&certificates(field, source)?).map_err(|(at, reason)| {
                TlsError::invalid(field, format!("certificate {at} cannot be used: {reason}"))
            })?;
            if roots.store.is_empty() {
                return Err(TlsError::invalid(field, "holds no PEM certificate"));
            }
            Ok(Arc::new(roots))
        }
    }
}

/// The system's roots, read once in the life of the process.
fn system_roots(field: &str) -> Result<Arc<Roots>, TlsError> {
    static SYSTEM: OnceLock<Arc<Roots>> = OnceLock::new();
    let roots = SYSTEM.get_or_init(|| {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(Roots::of_store(store))
    });
    if roots.store.is_empty() {
        return Err(TlsError::invalid(
            field,
            "this system has no root certificates; install ca-certificates or set SSL_CERT_FILE",
        ));
    }
    Ok(Arc::clone(roots))
}

fn certificates(field: &str, source: &DataSource) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(&read(field, source)?)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::invalid(field, format!("PEM cannot be read: {error}")))
}

fn read(field: &str, source: &DataSource) -> Result<Vec<u8>, TlsError> {
    match source {
        DataSource::Inline(bytes) => Ok(bytes.clone()),
        DataSource::File(path) => {
            std::fs::read(path).map_err(|error| TlsError::invalid(field, format!("{path}: {error}")))
        }
        DataSource::Environment(name) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|_| TlsError::invalid(field, format!("environment variable {name} is not set"))),
    }
}
