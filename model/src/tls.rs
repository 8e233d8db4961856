//! TLS contexts: what a listener presents and demands, what a cluster presents and demands.

use crate::matcher::StringMatcher;
use crate::name::TrustDomain;

/// The name under which a Pillion proxy finds its own certificate and key.
///
/// It is an SDS secret name that is never asked of the registry: keys do not cross ADS.
pub const SVID_SECRET: &str = "pillion:svid";
/// The name under which a Pillion proxy finds the mesh's root certificates.
pub const ROOTS_SECRET: &str = "pillion:roots";
/// The name under which a Pillion proxy finds the root certificates of every trust domain it knows, ours
/// and the federated ones: which of them count is decided by the peer's own trust domain.
pub const ALL_ROOTS_SECRET: &str = "pillion:all-roots";

/// The name under which a Pillion proxy finds the root certificates of one federated trust domain.
pub fn federated_secret(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

/// Where bytes come from. Envoy: `DataSource`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DataSource {
    /// A file, read when the configuration is applied.
    File(String),
    /// The bytes themselves (`inline_bytes`, `inline_string`).
    Inline(Vec<u8>),
    /// An environment variable.
    Environment(String),
}

/// A certificate chain with its key. Envoy: `TlsCertificate` or an SDS reference to one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Certificate {
    /// Given here.
    Given {
        /// PEM chain, leaf first.
        chain: DataSource,
        /// PEM key.
        key: DataSource,
    },
    /// An SDS secret by name ([`SVID_SECRET`] is the proxy's own).
    Secret(String),
}

/// Which peers are trusted. Envoy: `CertificateValidationContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// Where the root certificates come from.
    pub roots: Roots,
    /// The peer's certificate must carry one of these names; empty: any name.
    pub names: Vec<NameMatcher>,
}

/// Root certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Roots {
    /// PEM given here.
    Given(DataSource),
    /// An SDS secret by name ([`ROOTS_SECRET`] is the mesh's).
    Secret(String),
    /// The system's.
    System,
}

/// Matches one subject alternative name. Envoy: `SubjectAltNameMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct NameMatcher {
    /// The kind of name.
    pub kind: NameKind,
    /// What it must be.
    pub matcher: StringMatcher,
}

/// Kinds of subject alternative names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameKind {
    /// `uniformResourceIdentifier`: SPIFFE ids.
    Uri,
    /// `dNSName`.
    Dns,
    /// `iPAddress`.
    Ip,
    /// `rfc822Name`.
    Email,
}

/// TLS protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// What a listener's filter chain presents and demands. Envoy: `DownstreamTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct DownstreamTls {
    /// Presented to the client; the first is used (selection by server name is the filter chain's).
    pub certificates: Vec<Certificate>,
    /// Whom to trust; `None`: client certificates are not asked for.
    pub validation: Option<Validation>,
    /// Refuse clients without a certificate.
    pub require_client_certificate: bool,
    /// ALPN protocols, in order of preference.
    pub alpn: Vec<String>,
    /// Oldest version.
    pub min_version: TlsVersion,
    /// Newest version.
    pub max_version: TlsVersion,
}

/// What a cluster's connections present and demand. Envoy: `UpstreamTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    /// Presented to the server; `None`: nothing.
    pub certificate: Option<Certificate>,
    /// Whom to trust. `None` accepts any server, as in Envoy; resolve never makes that.
    pub validation: Option<Validation>,
    /// Server name sent; empty: none.
    pub sni: String,
    /// ALPN protocols offered, in order of preference.
    pub alpn: Vec<String>,
    /// Oldest version.
    pub min_version: TlsVersion,
    /// Newest version. Envoy's own default for clients is TLS 1.2: the decoder sets that.
    pub max_version: TlsVersion,
}

impl DownstreamTls {
    /// Whether it names secrets.
    #[must_use]
    pub fn names_secrets(&self) -> bool {
        self.certificates.iter().any(Certificate::is_secret)
            || self.validation.as_ref().is_some_and(Validation::names_secret)
    }
}

impl UpstreamTls {
    /// Whether it names secrets.
    #[must_use]
    pub fn names_secrets(&self) -> bool {
        self.certificate.as_ref().is_some_and(Certificate::is_secret)
            || self.validation.as_ref().is_some_and(Validation::names_secret)
    }
}

impl Certificate {
    fn is_secret(&self) -> bool {
        matches!(self, Self::Secret(_))
    }
}

impl Validation {
    fn names_secret(&self) -> bool {
        matches!(self.roots, Roots::Secret(_))
    }
}
