//! A certificate authority for tests, which also makes certificates that must be refused.
//!
//! Only with feature `testing`; the mesh's own authority is in `pillion-registry`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_model::name::{ServiceName, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::identity::{Identity, TrustBundle};

/// A root that signs whatever a test asks for.
pub struct TestCa {
    root: CertifiedIssuer<'static, KeyPair>,
    trust_domain: TrustDomain,
}

/// What a test wants in a leaf; the default is an SVID without names, valid now for a day.
pub struct Leaf {
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Subject attributes: `CN`, `O`, `OU`.
    pub subject: Vec<(&'static str, &'static str)>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Marks the leaf as a certificate authority.
    pub ca: bool,
    /// Extended key usages; both by default.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Default for Leaf {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            uris: Vec::new(),
            dns: Vec::new(),
            ips: Vec::new(),
            subject: Vec::new(),
            not_before: now - Duration::from_secs(300),
            not_after: now + Duration::from_secs(24 * 3600),
            ca: false,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

impl Leaf {
    /// A leaf as the mesh issues it to a service.
    pub fn service(namespace: &str, service: &str) -> Self {
        Self { uris: vec![format!("spiffe://mesh.internal/ns/{namespace}/svc/{service}")], ..Self::default() }
    }
}

impl TestCa {
    /// A new root with its own key.
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} test root"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        let root = CertifiedIssuer::self_signed(params, key).expect("a root can be made");
        Self { root, trust_domain: TrustDomain::parse(trust_domain).expect("a trust domain") }
    }

    /// The root certificate.
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// The root as a trust bundle.
    pub fn bundle(&self) -> TrustBundle {
        let trust_domain = self.trust_domain.clone();
        TrustBundle { trust_domain, roots: vec![self.root()], revoked: Arc::default() }
    }

    /// The identity of a service.
    pub fn service(&self, namespace: &str, service: &str) -> Identity {
        let name = ServiceName::new(namespace, service).expect("a service name");
        self.identity(&SpiffeId::service(self.trust_domain.clone(), name))
    }

    /// The identity of the registry, for `localhost` and loopback, with the root in its chain.
    pub fn registry(&self) -> Identity {
        let id = SpiffeId::registry(self.trust_domain.clone());
        let ips = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        let leaf = Leaf { uris: vec![id.to_string()], dns: vec!["localhost".into()], ips, ..Leaf::default() };
        let (mut chain, key) = self.leaf(leaf);
        chain.push(self.root());
        Identity::new(chain, key, self.bundle(), self.trust_domain.as_str()).expect("a sound identity")
    }

    /// Any identity.
    pub fn identity(&self, id: &SpiffeId) -> Identity {
        let (chain, key) = self.leaf(Leaf { uris: vec![id.to_string()], ..Leaf::default() });
        Identity::new(chain, key, self.bundle(), self.trust_domain.as_str()).expect("a sound identity")
    }

    /// Any certificate, sound or not.
    pub fn leaf(&self, leaf: Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in leaf.subject {
            let kind = match kind {
                "CN" => DnType::CommonName,
                "O" => DnType::OrganizationName,
                _ => DnType::OrganizationalUnitName,
            };
            params.distinguished_name.push(kind, value);
        }
        let text = |name: String| name.try_into().expect("ASCII");
        params.subject_alt_names.extend(leaf.uris.into_iter().map(|name| SanType::URI(text(name))));
        params.subject_alt_names.extend(leaf.dns.into_iter().map(|name| SanType::DnsName(text(name))));
        params.subject_alt_names.extend(leaf.ips.into_iter().map(SanType::IpAddress));
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = leaf.usages;
        params.is_ca = IsCa::ExplicitNoCa;
        if leaf.ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.root).expect("a leaf can be signed");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![certificate.der().clone()], key)
    }

    /// Secrets for a TLS context that present any certificate and trust this root.
    pub fn secrets(&self, leaf: Leaf) -> impl crate::tls::Secrets + use<> {
        let (chain, key) = self.leaf(leaf);
        let certified = rustls::sign::CertifiedKey::from_der(chain, key, &crate::tls::provider());
        let roots = crate::tls::Roots::mesh(&self.bundle()).expect("a root");
        AnySecrets { certified: Arc::new(certified.expect("the key fits")), roots: Arc::new(roots) }
    }
}

struct AnySecrets {
    certified: Arc<rustls::sign::CertifiedKey>,
    roots: Arc<crate::tls::Roots>,
}

impl crate::tls::Secrets for AnySecrets {
    fn certificate(&self, _name: &str) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.certified))
    }

    fn roots(&self, _name: &str) -> Option<Arc<crate::tls::Roots>> {
        Some(Arc::clone(&self.roots))
    }
}
