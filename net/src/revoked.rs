//! Identities that are trusted no more, although their certificates have not ended.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use pillion_model::name::{NameError, NodeId, SpiffeId, TrustDomain};

use crate::tls::PeerCertificate;

/// What may be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Every certificate of a service.
    Id(SpiffeId),
    /// Every certificate of one instance.
    Instance(NodeId),
    /// One certificate: its serial number, lower-case hex.
    Serial(String),
}

/// A text that names nothing that can be revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// It begins as an identity and is none.
    #[error("no identity: {0}")]
    Id(NameError),
    /// The registry cannot be revoked: it is who would tell.
    #[error("the registry's own identity cannot be revoked; change the root with `pillion ca rotate`")]
    Registry,
    /// None of the three forms.
    #[error(
        "`{0}` is no identity (spiffe://…), no instance (<namespace>/<service>/<instance-id>) and no \
         serial number (16 to 40 hex digits)"
    )]
    Form(String),
}

/// Everything that is revoked, and whose certificates count at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    texts: BTreeSet<String>,
    /// Our trust domain, and the others that are trusted; `None`: that is not judged here.
    domains: Option<(TrustDomain, BTreeSet<TrustDomain>)>,
}

impl FromStr for Revocation {
    type Err = RevocationError;

    fn from_str(text: &str) -> Result<Self, RevocationError> {
        if text.starts_with("spiffe://") {
            let id: SpiffeId = text.parse().map_err(RevocationError::Id)?;
            return if id.is_registry() { Err(RevocationError::Registry) } else { Ok(Self::Id(id)) };
        }
        if text.contains('/') {
            return text.parse().map(Self::Instance).map_err(|_| RevocationError::Form(text.to_owned()));
        }
        // As openssl prints it, too.
        let text = text.strip_prefix("serial=").unwrap_or(text);
        let serial: String = text.chars().filter(|&c| c != ':').map(|c| c.to_ascii_lowercase()).collect();
        match (16..=40).contains(&serial.len()) && serial.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(Self::Serial(serial)),
            false => Err(RevocationError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Instance(node) => node.fmt(f),
            Self::Serial(serial) => f.write_str(serial),
        }
    }
}

impl Revoked {
    /// Those that these texts name; one that names nothing is left out.
    pub fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let parse = |text: T| text.as_ref().parse::<Revocation>().ok();
        let texts = texts.into_iter().filter_map(parse).map(|it| it.to_string()).collect();
        Self { texts, domains: None }
    }

    /// The same, where peers of other trust domains than these are trusted no more either.
    pub fn among(&self, own: &TrustDomain, others: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self { texts: self.texts.clone(), domains: Some((own.clone(), others.into_iter().collect())) }
    }

    /// Whether a trust domain is not ours.
    pub fn is_elsewhere(&self, domain: &TrustDomain) -> bool {
        self.domains.as_ref().is_some_and(|(own, _)| own != domain)
    }

    /// As texts.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Whether exactly this is revoked.
    pub fn contains(&self, what: &str) -> bool {
        self.texts.contains(what)
    }

    /// By what a peer is revoked, if it is.
    pub fn names(&self, peer: &PeerCertificate) -> Option<&str> {
        if let (Some((own, others)), Some(id)) = (&self.domains, peer.spiffe_id())
            && id.trust_domain() != own
            && !others.contains(id.trust_domain())
        {
            return Some("its whole trust domain, which is federated no more");
        }
        if self.is_empty() {
            return None;
        }
        let instance = peer.instance();
        let mut texts = peer.uri_sans.iter().chain([&peer.serial]).chain(&instance);
        texts.find_map(|text| self.texts.get(text)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Leaf, TestCa};

    #[test]
    fn what_can_be_revoked_is_told_by_its_form() {
        for (text, want) in [
            ("spiffe://mesh.internal/ns/shop/svc/web", Ok("spiffe://mesh.internal/ns/shop/svc/web")),
            ("shop/web/web-1", Ok("shop/web/web-1")),
            ("4A:1b:00:11:22:33:44:55", Ok("4a1b001122334455")),
            ("spiffe://mesh.internal/registry", Err("cannot be revoked")),
            ("spiffe://mesh.internal/web", Err("no identity")),
            ("shop/web", Err("no instance")),
            ("4a", Err("16 to 40 hex digits")),
            ("web", Err("no serial number")),
        ] {
            match (text.parse::<Revocation>(), want) {
                (Ok(found), Ok(want)) => assert_eq!(found.to_string(), want),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{text}: {error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_certificate_is_revoked_by_identity_instance_or_serial() {
        let ca = TestCa::new("mesh.internal");
        let leaf = Leaf { subject: vec![("O", "Pillion"), ("CN", "web-1")], ..Leaf::service("shop", "web") };
        let peer = PeerCertificate::parse(&ca.leaf(leaf).0).expect("a certificate");
        for (what, revoked) in [
            ("spiffe://mesh.internal/ns/shop/svc/web", true),
            ("spiffe://mesh.internal/ns/shop/svc/web2", false),
            ("shop/web/web-1", true),
            ("shop/web/web-2", false),
            (peer.serial.as_str(), true),
            ("00112233445566778899", false),
        ] {
            assert_eq!(Revoked::new([what]).names(&peer).is_some(), revoked, "{what}");
        }
    }
}
