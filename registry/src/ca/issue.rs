//! What the authority signs: leaves of services, and the registry's own.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use pillion_model::name::{NodeId, SpiffeId};
use pillion_net::identity::{Identity, TrustBundle};
use pillion_net::resolve::Target;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::federated;
use super::material::Material;
use super::root::{Leaf, Signer, Subject, public_key};
use super::{Authority, CaError};

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

impl Authority {
    /// Signs the public key of `csr` (PKCS#10, DER) for an instance of a service. Whoever calls has seen the proof.
    ///
    /// # Errors
    ///
    /// [`CaError::Request`] when the request is not one, its signature is wrong, or its key is of a
    /// kind we do not sign.
    pub fn issue(&self, node: &NodeId, csr: &[u8]) -> Result<Issued, CaError> {
        let settings = self.settings();
        let key = public_key(csr).map_err(CaError::Request)?;
        let id = SpiffeId::service(settings.trust_domain, node.service.clone());
        let material = self.material();
        let names = [id.to_string(), node.to_string()];
        if let Some(what) = names.into_iter().find(|name| material.revocations.revoked.contains(name)) {
            return Err(CaError::Revoked(what));
        }
        let subject = Subject { id: &id, instance: Some(node.instance.as_str()), dns: &[], ips: &[] };
        let (leaf, mut chain) = self.leaf(&material, &key, &subject, settings.leaf_lifetime)?;
        chain.extend(material.bridge());
        Ok(Issued { chain, roots: material.bundle(), not_after: leaf.not_after, serial: leaf.serial })
    }

    /// A leaf, and with it the authority below the active root that signed it.
    fn leaf(
        &self,
        material: &Material,
        key: &impl PublicKeyData,
        subject: &Subject<'_>,
        lifetime: Duration,
    ) -> Result<(Leaf, Vec<CertificateDer<'static>>), CaError> {
        let now = (self.clock)();
        let active = &material.active.signer;
        if active.not_after <= now {
            return Err(CaError::Ended);
        }
        let below = match material.signs_leaves() {
            true => None,
            false => Some(self.signer(material, lifetime, now)?),
        };
        let leaf = below.as_ref().unwrap_or(active).leaf(key, subject, lifetime, now)?;
        let chain = std::iter::once(leaf.certificate.clone());
        let chain = chain.chain(below.map(|below| below.certificate.clone())).collect();
        Ok((leaf, chain))
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
        let (_, mut chain) = self.leaf(&material, &key, &subject, settings.leaf_lifetime)?;
        chain.extend(material.path());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let bundle = TrustBundle {
            trust_domain: settings.trust_domain,
            roots: material.bundle(),
            revoked: Arc::clone(&material.revocations.revoked),
        };
        let identity = Identity::new(chain, key, bundle, settings.zone)?;
        Ok(identity.with_federated(federated::roots(&material))?)
    }
}

/// Names and addresses under which the registry is called by clients that check host names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// An intermediate lives so many times as long as its leaves, and signs for the first half of that.
const INTERMEDIATE_LIFETIMES: u32 = 4;
