//! Decides whether a peer's certificate is acceptable.
//!
//! As in Envoy: the chain must end in the given roots, the leaf must carry one of the given names,
//! and no host name is compared. With the mesh's roots the SPIFFE rules hold on top: exactly one URI
//! name, in the trust domain of these roots, on a leaf that signs nothing. Where roots of several trust
//! domains are known, only those of the leaf's own count: no root vouches for another domain's names.

use std::sync::Arc;
use std::{fmt, io};

use pillion_model::matcher::{Pattern, StringMatcher};
use pillion_model::name::TrustDomain;
use pillion_model::tls::{NameKind, NameMatcher};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::peer::{PeerCertificate, hex, public_key_sha256};
use super::refusals;
use super::secret::Roots;

/// Why a peer's certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No certificate at all.
    #[error("no certificate presented")]
    Empty,
    /// The bytes are no certificate.
    #[error("the certificate cannot be read: {reason}")]
    Malformed {
        /// The parser's message.
        reason: String,
    },
    /// The chain does not end in a trusted root.
    #[error("the certificate is not signed by a root that we trust")]
    UnknownIssuer,
    /// The certificate is not valid any more.
    #[error("the certificate expired {ago} s ago")]
    Expired {
        /// Seconds since its end.
        ago: u64,
        /// Its end, Unix seconds.
        not_after: u64,
        /// The time of the check, Unix seconds.
        now: u64,
    },
    /// The certificate is not valid yet.
    #[error("the certificate becomes valid in {within} s; are the clocks right?")]
    NotYetValid {
        /// Seconds until its begin.
        within: u64,
    },
    /// A certificate authority presented itself as a peer.
    #[error("the certificate is a certificate authority's, not a peer's")]
    Ca,
    /// Some other rule of X.509 is broken, such as key usage.
    #[error("the certificate breaks a rule: {reason}")]
    Rule {
        /// Which one.
        reason: String,
    },
    /// It was taken back.
    #[error("the certificate is revoked: {what}")]
    Revoked {
        /// By what: the identity, the instance or the serial number.
        what: String,
    },
    /// Not exactly one URI name.
    #[error("the certificate has {count} URI names ({}); a SPIFFE identity has exactly one", names.join(", "))]
    UriNames {
        /// How many.
        count: usize,
        /// Which, at most four.
        names: Vec<String>,
    },
    /// The URI name is no SPIFFE id.
    #[error("the certificate names `{found}`, which is no SPIFFE id")]
    NotSpiffe {
        /// The URI.
        found: String,
    },
    /// The identity belongs to another trust domain than the roots.
    #[error("the certificate names `{found}`, which is not in trust domain {want}")]
    TrustDomain {
        /// The URI.
        found: String,
        /// The roots' trust domain.
        want: TrustDomain,
    },
    /// None of the names is one of those wanted.
    #[error("the certificate names {}; want {want}", list(found))]
    Name {
        /// Names of the kinds that were looked at.
        found: Vec<String>,
        /// What would be right.
        want: String,
    },
    /// First contact: no certificate of the chain has a pinned key.
    #[error(
        "the registry's root key is not one that the join token or --registry-roots names (sha256 {want}); is this \
         token of another mesh?"
    )]
    Pin {
        /// The pinned hash, hex.
        want: String,
    },
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        let seconds = |s| UnixTime::since_unix_epoch(std::time::Duration::from_secs(s));
        // The kinds rustls knows send the peer the matching alert.
        Self::InvalidCertificate(match error {
            PeerError::UnknownIssuer => CertificateError::UnknownIssuer,
            PeerError::Revoked { .. } => CertificateError::Revoked,
            PeerError::Expired { not_after, now, .. } => {
                CertificateError::ExpiredContext { time: seconds(now), not_after: seconds(not_after) }
            }
            other => CertificateError::Other(OtherError(Arc::new(Refusal(other)))),
        })
    }
}

/// Carries our reason through rustls, which prints it by `Debug`.
struct Refusal(PeerError);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Refusal {}

/// Whether a handshake failed because we refused the registry: it is not the one that the join token
/// names.
pub fn is_of_another_mesh(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) = inner else {
        return false;
    };
    reason.downcast_ref::<Refusal>().is_some_and(|refusal| matches!(refusal.0, PeerError::Pin { .. }))
}

/// What a failed handshake means, for people: our own reason for refusing the peer, or what the peer
/// said, or the system's error.
pub fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            reason.to_string()
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            PeerError::UnknownIssuer.to_string()
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => {
            "the certificate is revoked".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(reason)) => reason.to_string(),
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)) => {
            "the peer refuses us: our certificate is revoked".to_owned()
        }
        Some(rustls::Error::AlertReceived(alert)) => format!("the peer refuses us: {alert:?}"),
        Some(rustls::Error::InvalidMessage(_)) => "what answers does not speak TLS".to_owned(),
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

/// Which side's certificate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// What makes a certificate acceptable.
#[derive(Debug)]
pub(super) enum Trust {
    /// Nothing: any certificate will do.
    Any,
    /// A chain that ends in one of the roots; the leaf carries one of the names (none given: any).
    Roots { roots: Arc<Roots>, names: Vec<NameMatcher> },
    /// First contact: the registry, whose chain ends in a root with one of these keys.
    Pins(Vec<[u8; 32]>),
}

/// Verifies the certificate of the other side, in both directions.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) trust: Trust,
    /// Server side: refuse clients without a certificate.
    pub(super) required: bool,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), PeerError> {
        let verified = self.judge(leaf, intermediates, now, role);
        if let Err(error) = &verified {
            refusals::count(error, leaf);
        }
        verified
    }

    /// A client's certificate without others in between.
    #[cfg(test)]
    pub(super) fn verify_as_client(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), PeerError> {
        self.verify(leaf, &[], now, Role::Client)
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), PeerError> {
        match &self.trust {
            Trust::Any => Ok(()),
            Trust::Pins(pins) => verify_registry(self.algorithms, leaf, intermediates, pins, now),
            Trust::Roots { roots, names } => {
                let roots = roots.of(leaf)?;
                verify_chain(self.algorithms, leaf, intermediates, &roots.store().roots, now, role)?;
                if names.is_empty() && roots.trust_domain().is_none() {
                    return Ok(());
                }
                let peer = PeerCertificate::parse(std::slice::from_ref(leaf))?;
                if let Some(trust_domain) = roots.trust_domain() {
                    check_spiffe(&peer, trust_domain)?;
                    if let Some(what) = roots.revoked().names(&peer) {
                        return Err(PeerError::Revoked { what: what.to_owned() });
                    }
                }
                check_names(&peer, names)
            }
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Role::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    /// None: naming our roots would only make handshakes larger.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, Role::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The registry's chain at first contact, when nothing is known but its root's key.
fn verify_registry(
    algorithms: WebPkiSupportedAlgorithms,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    pins: &[[u8; 32]],
    now: UnixTime,
) -> Result<(), PeerError> {
    let root = intermediates
        .iter()
        .find(|certificate| public_key_sha256(certificate).is_ok_and(|hash| pins.contains(&hash)))
        .ok_or_else(|| PeerError::Pin {
            want: pins.iter().map(|pin| hex(pin)).collect::<Vec<_>>().join(", "),
        })?;
    let anchor = webpki::anchor_from_trusted_cert(root)
        .map_err(|error| PeerError::Malformed { reason: error.to_string() })?;
    verify_chain(algorithms, leaf, intermediates, &[anchor], now, Role::Server)?;
    let peer = PeerCertificate::parse(std::slice::from_ref(leaf))?;
    let uri = only_uri(&peer)?;
    match peer.spiffe_id() {
        Some(id) if id.is_registry() => check_spiffe(&peer, id.trust_domain()),
        _ => Err(PeerError::Name {
            found: vec![uri.to_owned()],
            want: "the registry, spiffe://<trust-domain>/registry".to_owned(),
        }),
    }
}

/// Checks a chain of our own: as a server's and as a client's, with the SPIFFE rules of `roots`.
///
/// # Errors
///
/// [`PeerError`] says which rule is broken.
pub fn verify_svid(chain: &[CertificateDer<'_>], roots: &Roots, now: UnixTime) -> Result<(), PeerError> {
    let (leaf, intermediates) = chain.split_first().ok_or(PeerError::Empty)?;
    let algorithms = super::provider().signature_verification_algorithms;
    for role in [Role::Server, Role::Client] {
        verify_chain(algorithms, leaf, intermediates, &roots.store().roots, now, role)?;
    }
    match roots.trust_domain() {
        Some(trust_domain) => check_spiffe(&PeerCertificate::parse(chain)?, trust_domain),
        None => Ok(()),
    }
}

/// Checks a client's chain against other roots than the mesh's.
pub(crate) fn verify_client(
    chain: &[CertificateDer<'_>],
    roots: &Roots,
    now: UnixTime,
) -> Result<(), PeerError> {
    let (leaf, intermediates) = chain.split_first().ok_or(PeerError::Empty)?;
    let algorithms = super::provider().signature_verification_algorithms;
    verify_chain(algorithms, leaf, intermediates, &roots.store().roots, now, Role::Client)
}

fn verify_chain(
    algorithms: WebPkiSupportedAlgorithms,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    now: UnixTime,
    role: Role,
) -> Result<(), PeerError> {
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let certificate = EndEntityCert::try_from(leaf).map_err(|error| reason(error, role))?;
    certificate
        .verify_for_usage(algorithms.all, anchors, intermediates, now, usage, None, None)
        .map_err(|error| reason(error, role))?;
    Ok(())
}

fn reason(error: webpki::Error, role: Role) -> PeerError {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => PeerError::UnknownIssuer,
        E::CaUsedAsEndEntity => PeerError::Ca,
        E::CertExpired { time, not_after } => PeerError::Expired {
            ago: time.as_secs().saturating_sub(not_after.as_secs()),
            not_after: not_after.as_secs(),
            now: time.as_secs(),
        },
        E::CertNotValidYet { time, not_before } => {
            PeerError::NotYetValid { within: not_before.as_secs().saturating_sub(time.as_secs()) }
        }
        E::RequiredEkuNotFoundContext(_) => PeerError::Rule {
            reason: match role {
                Role::Client => "it may not be used by a client (no clientAuth key usage)".to_owned(),
                Role::Server => "it may not be used by a server (no serverAuth key usage)".to_owned(),
            },
        },
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions => {
            PeerError::Malformed { reason: error.to_string() }
        }
        other => PeerError::Rule { reason: other.to_string() },
    }
}

/// The X.509-SVID rules for a leaf.
fn check_spiffe(peer: &PeerCertificate, want: &TrustDomain) -> Result<(), PeerError> {
    if peer.usage.ca {
        return Err(PeerError::Ca);
    }
    if peer.usage.signs {
        return Err(PeerError::Rule { reason: "a SPIFFE leaf may not sign certificates".to_owned() });
    }
    let uri = only_uri(peer)?;
    let not_spiffe = || PeerError::NotSpiffe { found: uri.to_owned() };
    let (domain, path) =
        uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or_else(not_spiffe)?;
    if domain != want.as_str() {
        return Err(PeerError::TrustDomain { found: uri.to_owned(), want: want.clone() });
    }
    // Policies look at names of every kind: none may pass for an identity that it is not.
    if let Some(name) = peer.dns_sans.iter().chain(&peer.email_sans).find(|name| name.contains('/')) {
        return Err(PeerError::Rule { reason: format!("`{name}` is no DNS name and no address") });
    }
    if uri.len() > SPIFFE_ID_BYTES_MAX || !path.split('/').all(is_segment) {
        return Err(not_spiffe());
    }
    Ok(())
}

fn only_uri(peer: &PeerCertificate) -> Result<&str, PeerError> {
    match &peer.uri_sans[..] {
        [only] => Ok(only),
        many => Err(PeerError::UriNames { count: many.len(), names: many.iter().take(4).cloned().collect() }),
    }
}

fn is_segment(segment: &str) -> bool {
    !segment.is_empty()
        && segment != "."
        && segment != ".."
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

fn check_names(peer: &PeerCertificate, wanted: &[NameMatcher]) -> Result<(), PeerError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut found: Vec<String> = Vec::new();
    for want in wanted {
        let names = match want.kind {
            NameKind::Uri => peer.uri_sans.clone(),
            NameKind::Dns => peer.dns_sans.clone(),
            NameKind::Ip => peer.ip_sans.iter().map(ToString::to_string).collect(),
            NameKind::Email => peer.email_sans.clone(),
        };
        for name in names {
            if want.matcher.is_match(&name) || (want.kind == NameKind::Dns && wildcard(&name, &want.matcher))
            {
                return Ok(());
            }
            if found.len() < 4 && !found.contains(&name) {
                found.push(name);
            }
        }
    }
    let want: Vec<String> = wanted.iter().take(4).map(|want| describe(&want.matcher)).collect();
    Err(PeerError::Name { found, want: want.join(" or ") })
}

/// A certificate for `*.example.com` matches an exact `www.example.com`, as in Envoy.
fn wildcard(name: &str, matcher: &StringMatcher) -> bool {
    let (Some(suffix), Pattern::Exact(want)) = (name.strip_prefix("*."), &matcher.pattern) else {
        return false;
    };
    want.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(suffix))
}

fn describe(matcher: &StringMatcher) -> String {
    match &matcher.pattern {
        Pattern::Exact(text) => text.clone(),
        Pattern::Prefix(text) => format!("{text}…"),
        Pattern::Suffix(text) => format!("…{text}"),
        Pattern::Contains(text) => format!("…{text}…"),
        Pattern::Regex(regex) => format!("/{}/", regex.source()),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing comparable".to_owned() } else { names.join(", ") }
}

/// SPIFFE-ID section 2.3.
const SPIFFE_ID_BYTES_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (name, want, matches) in [
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "WWW.example.COM", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("www.example.com", "www.example.com", false),
        ] {
            assert_eq!(wildcard(name, &StringMatcher::exact(want)), matches, "{name} {want}");
        }
    }
}
