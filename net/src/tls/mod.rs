//! TLS server and client configurations from the model's contexts.
//!
//! Sessions are never resumed: a resumed session skips the certificate checks, and a mesh handshake
//! costs a fraction of a millisecond.

#[cfg(test)]
mod federated_tests;
mod live;
mod peer;
mod refusals;
mod secret;
#[cfg(test)]
mod tests;
mod verify;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use pillion_model::matcher::StringMatcher;
use pillion_model::name::SpiffeId;
use pillion_model::tls::{
    Certificate, DownstreamTls, NameKind, NameMatcher, ROOTS_SECRET, Roots as RootsSource, SVID_SECRET,
    TlsVersion, UpstreamTls, Validation,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::ServerName;

pub use live::{ClientTls, ServerTls};
pub use peer::{PeerCertificate, hex, public_key_sha256, sha256};
pub use refusals::refused;
pub use secret::{Federated, NoSecrets, Roots, Secrets, load_certificate, load_roots};
pub(crate) use verify::verify_client;
pub use verify::{PeerError, explain, is_of_another_mesh, verify_svid};
use verify::{PeerVerifier, Trust};

/// Why a TLS context cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A secret is not known: wait for it.
    #[error("{field}: secret `{name}` is not known yet")]
    MissingSecret {
        /// Path of the field within the context.
        field: String,
        /// The secret's name.
        name: String,
    },
    /// The context is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field within the context.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl TlsError {
    fn missing(field: &str, name: &str) -> Self {
        Self::MissingSecret { field: field.to_owned(), name: name.to_owned() }
    }

    fn invalid(field: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), reason: reason.into() }
    }
}

/// The one crypto provider: aws-lc-rs, offering X25519MLKEM768 first.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| {
        use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
        let kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
        Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
    });
    Arc::clone(provider)
}

/// Makes the configuration of a listener's TLS context.
///
/// # Errors
///
/// [`TlsError`] names the field.
pub fn server_config(context: &DownstreamTls, secrets: &dyn Secrets) -> Result<Arc<ServerConfig>, TlsError> {
    let versions = versions(context.min_version, context.max_version)?;
    let Some(first) = context.certificates.first() else {
        return Err(TlsError::invalid("tls_certificates", "is empty; a listener needs a certificate"));
    };
    let certificate = secret::certificate("tls_certificates[0]", first, secrets)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&versions)
        .map_err(|error| TlsError::invalid("tls_params", error.to_string()))?;
    let builder = if context.validation.is_some() || context.require_client_certificate {
        let required = context.require_client_certificate;
        builder.with_client_cert_verifier(verifier(context.validation.as_ref(), required, secrets)?)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn(&context.alpn);
    Ok(Arc::new(config))
}

/// Makes the configuration of a cluster's TLS context.
///
/// The server name is given to each connection: see [`server_name`].
///
/// # Errors
///
/// [`TlsError`] names the field.
pub fn client_config(context: &UpstreamTls, secrets: &dyn Secrets) -> Result<Arc<ClientConfig>, TlsError> {
    let versions = versions(context.min_version, context.max_version)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&versions)
        .map_err(|error| TlsError::invalid("tls_params", error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(context.validation.as_ref(), false, secrets)?);
    let mut config = match &context.certificate {
        None => builder.with_no_client_auth(),
        Some(source) => {
            let certificate = secret::certificate("tls_certificates[0]", source, secrets)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)))
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn(&context.alpn);
    config.enable_sni = !context.sni.is_empty();
    Ok(Arc::new(config))
}

/// First contact: trusts the registry whose chain ends in a root with one of these public keys (SHA-256).
///
/// Its identity must be `spiffe://<trust-domain>/registry`. No client certificate is presented.
pub fn pinned_client_config(root_keys: Vec<[u8; 32]>) -> Arc<ClientConfig> {
    first_contact(Trust::Pins(root_keys))
}

/// First contact on loopback of an open registry, which has no token to pin it by: any certificate.
pub(crate) fn unverified_client_config() -> Arc<ClientConfig> {
    first_contact(Trust::Any)
}

fn first_contact(trust: Trust) -> Arc<ClientConfig> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Arc::new(PeerVerifier { algorithms, trust, required: false });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn(&["h2"]);
    Arc::new(config)
}

/// The name a connection is made with: the context's SNI, or the address where it has none.
pub fn server_name(sni: &str, address: IpAddr) -> ServerName<'static> {
    ServerName::try_from(sni.to_owned()).unwrap_or_else(|_| ServerName::from(address))
}

/// What a mesh listener presents and demands: our SVID; a mesh identity of every client.
pub fn mesh_server_context(alpn: &[&str]) -> DownstreamTls {
    DownstreamTls {
        certificates: vec![Certificate::Secret(SVID_SECRET.to_owned())],
        validation: Some(Validation {
            roots: RootsSource::Secret(ROOTS_SECRET.to_owned()),
            names: Vec::new(),
        }),
        require_client_certificate: true,
        alpn: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        min_version: TlsVersion::V1_3,
        max_version: TlsVersion::V1_3,
    }
}

/// What a mesh client presents and demands: our SVID; one of the `expected` identities.
///
/// An empty `expected` accepts every identity of the trust domain.
pub fn mesh_client_context(expected: &[SpiffeId], sni: &str, alpn: &[&str]) -> UpstreamTls {
    let names = expected
        .iter()
        .map(|id| NameMatcher { kind: NameKind::Uri, matcher: StringMatcher::exact(id.to_string()) });
    UpstreamTls {
        certificate: Some(Certificate::Secret(SVID_SECRET.to_owned())),
        validation: Some(Validation {
            roots: RootsSource::Secret(ROOTS_SECRET.to_owned()),
            names: names.collect(),
        }),
        sni: sni.to_owned(),
        alpn: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
        min_version: TlsVersion::V1_3,
        max_version: TlsVersion::V1_3,
    }
}

fn verifier(
    validation: Option<&Validation>,
    required: bool,
    secrets: &dyn Secrets,
) -> Result<Arc<PeerVerifier>, TlsError> {
    let algorithms = provider().signature_verification_algorithms;
    let trust = match validation {
        None => Trust::Any,
        Some(Validation { roots, names }) => Trust::Roots {
            roots: secret::roots("validation_context.trusted_ca", roots, secrets)?,
            names: names.clone(),
        },
    };
    Ok(Arc::new(PeerVerifier { algorithms, trust, required }))
}

fn versions(min: TlsVersion, max: TlsVersion) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let all = [(TlsVersion::V1_3, &rustls::version::TLS13), (TlsVersion::V1_2, &rustls::version::TLS12)];
    let chosen: Vec<_> =
        all.into_iter().filter(|(version, _)| (min..=max).contains(version)).map(|(_, v)| v).collect();
    if chosen.is_empty() {
        return Err(TlsError::invalid("tls_params", "the minimum version is above the maximum version"));
    }
    Ok(chosen)
}

fn alpn(protocols: &[impl AsRef<str>]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.as_ref().as_bytes().to_vec()).collect()
}
