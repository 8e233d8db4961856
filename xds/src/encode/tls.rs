//! TLS contexts, as transport sockets.

use pillion_model::tls::{
    ALL_ROOTS_SECRET, Certificate, DataSource, DownstreamTls, NameKind, NameMatcher, ROOTS_SECRET, Roots,
    SVID_SECRET, TlsVersion, UpstreamTls, Validation,
};

use super::matcher::string;
use super::{Dialect, EnvoySecrets, ads, any, boolean};
use crate::pb;
use pb::core::config_source::ConfigSourceSpecifier;
use pb::core::data_source::Specifier;
use pb::tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};

pub(super) fn downstream(tls: &DownstreamTls, dialect: Dialect<'_>) -> pb::core::TransportSocket {
    let context = pb::tls::DownstreamTlsContext {
        common_tls_context: Some(common(
            &tls.certificates,
            tls.validation.as_ref(),
            &tls.alpn,
            (tls.min_version, tls.max_version),
            dialect,
        )),
        require_client_certificate: Some(boolean(tls.require_client_certificate)),
        // Renewed identities and changed policies are checked by full handshakes.
        disable_stateful_session_resumption: !is_grpc(dialect),
        session_ticket_keys_type: (!is_grpc(dialect)).then_some(
            pb::tls::downstream_tls_context::SessionTicketKeysType::DisableStatelessSessionResumption(true),
        ),
        ..Default::default()
    };
    socket(pb::names::TLS, any(&context))
}

pub(super) fn upstream(tls: &UpstreamTls, dialect: Dialect<'_>) -> pb::core::TransportSocket {
    let context = pb::tls::UpstreamTlsContext {
        common_tls_context: Some(common(
            tls.certificate.as_slice(),
            tls.validation.as_ref(),
            &tls.alpn,
            (tls.min_version, tls.max_version),
            dialect,
        )),
        sni: tls.sni.clone(),
        max_session_keys: (!is_grpc(dialect)).then(|| super::number(0)),
        ..Default::default()
    };
    socket(pb::names::TLS, any(&context))
}

/// gRPC refuses contexts with parameters it does not have.
fn is_grpc(dialect: Dialect<'_>) -> bool {
    matches!(dialect, Dialect::Grpc)
}

pub(super) fn plaintext() -> pb::core::TransportSocket {
    socket(pb::names::RAW, any(&pb::raw_buffer::RawBuffer {}))
}

fn socket(name: &str, config: pb::Any) -> pb::core::TransportSocket {
    pb::core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(pb::core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn common(
    certificates: &[Certificate],
    validation: Option<&Validation>,
    alpn: &[String],
    versions: (TlsVersion, TlsVersion),
    dialect: Dialect<'_>,
) -> pb::tls::CommonTlsContext {
    let mut context = pb::tls::CommonTlsContext {
        tls_params: (!is_grpc(dialect)).then(|| pb::tls::TlsParameters {
            tls_minimum_protocol_version: version(versions.0).into(),
            tls_maximum_protocol_version: version(versions.1).into(),
            ..Default::default()
        }),
        alpn_protocols: alpn.to_vec(),
        ..Default::default()
    };
    for one in certificates {
        match (one, dialect) {
            (Certificate::Given { chain, key }, _) => context.tls_certificates.push(certificate(chain, key)),
            (Certificate::Secret(name), Dialect::Grpc) if name == SVID_SECRET => {
                context.tls_certificate_provider_instance = Some(instance());
            }
            (Certificate::Secret(name), Dialect::Envoy(options)) if name == SVID_SECRET => {
                match &options.secrets {
                    EnvoySecrets::Pem { certificate: chain, key, .. } => {
                        let (chain, key) = (DataSource::File(chain.clone()), DataSource::File(key.clone()));
                        context.tls_certificates.push(certificate(&chain, &key));
                    }
                    EnvoySecrets::Sds { certificate, .. } => {
                        context.tls_certificate_sds_secret_configs.push(sds_file(name, certificate));
                    }
                }
            }
            (Certificate::Secret(name), _) => {
                context.tls_certificate_sds_secret_configs.push(sds(name, dialect))
            }
        }
    }
    context.validation_context_type = validation.map(|rules| validation_context(rules, dialect));
    context
}

fn certificate(chain: &DataSource, key: &DataSource) -> pb::tls::TlsCertificate {
    pb::tls::TlsCertificate {
        certificate_chain: Some(data_source(chain)),
        private_key: Some(data_source(key)),
        ..Default::default()
    }
}

fn validation_context(validation: &Validation, dialect: Dialect<'_>) -> ValidationContextType {
    let mut context = names(validation, dialect);
    let secret = match (&validation.roots, dialect) {
        (Roots::Given(source), _) => {
            context.trusted_ca = Some(data_source(source));
            None
        }
        (Roots::System, _) => {
            context.system_root_certs = Some(pb::tls::certificate_validation_context::SystemRootCerts {});
            None
        }
        (Roots::Secret(secret), Dialect::Envoy(options)) if is_ours(secret) => match &options.secrets {
            EnvoySecrets::Pem { roots, .. } => {
                context.trusted_ca = Some(data_source(&DataSource::File(roots.clone())));
                None
            }
            EnvoySecrets::Sds { roots, .. } => Some(sds_file(ROOTS_SECRET, roots)),
        },
        (Roots::Secret(secret), Dialect::Grpc) if is_ours(secret) => {
            context.ca_certificate_provider_instance = Some(instance());
            None
        }
        (Roots::Secret(secret), _) => Some(sds(secret, dialect)),
    };
    match secret {
        None => ValidationContextType::ValidationContext(context),
        Some(secret) => {
            ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(context),
                validation_context_sds_secret_config: Some(secret),
                ..Default::default()
            })
        }
    }
}

/// Whether the mesh's own roots are meant. Foreign clients are not told those of other meshes: where these
/// would count as well, they trust their own mesh only.
fn is_ours(secret: &str) -> bool {
    secret == ROOTS_SECRET || secret == ALL_ROOTS_SECRET
}

/// Which names are accepted. gRPC looks at a certificate's names of every kind at once, and some of its
/// clients know only the older field: with the newer one alone they would accept any name.
#[expect(deprecated, reason = "the field that every gRPC client reads")]
fn names(validation: &Validation, dialect: Dialect<'_>) -> pb::tls::CertificateValidationContext {
    if is_grpc(dialect) {
        return pb::tls::CertificateValidationContext {
            match_subject_alt_names: validation.names.iter().map(|one| string(&one.matcher)).collect(),
            ..Default::default()
        };
    }
    pb::tls::CertificateValidationContext {
        match_typed_subject_alt_names: validation.names.iter().map(name).collect(),
        ..Default::default()
    }
}

/// The name of the certificate provider in the bootstrap of gRPC clients.
pub const GRPC_CERTIFICATES: &str = "pillion";

fn instance() -> pb::tls::CertificateProviderPluginInstance {
    pb::tls::CertificateProviderPluginInstance {
        instance_name: GRPC_CERTIFICATES.to_owned(),
        certificate_name: String::new(),
    }
}

fn name(matcher: &NameMatcher) -> pb::tls::SubjectAltNameMatcher {
    use pb::tls::subject_alt_name_matcher::SanType;
    let kind = match matcher.kind {
        NameKind::Uri => SanType::Uri,
        NameKind::Dns => SanType::Dns,
        NameKind::Ip => SanType::IpAddress,
        NameKind::Email => SanType::Email,
    };
    pb::tls::SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(string(&matcher.matcher)),
        oid: String::new(),
    }
}

/// A Pillion proxy knows its secrets by name; Envoy asks the control plane for them.
fn sds(name: &str, dialect: Dialect<'_>) -> pb::tls::SdsSecretConfig {
    let sds_config = match dialect {
        Dialect::Pillion => None,
        Dialect::Envoy(_) | Dialect::Grpc => Some(ads()),
    };
    pb::tls::SdsSecretConfig { name: name.to_owned(), sds_config }
}

fn sds_file(name: &str, path: &str) -> pb::tls::SdsSecretConfig {
    pb::tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(pb::core::ConfigSource {
            resource_api_version: pb::core::ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(
                pb::core::PathConfigSource { path: path.to_owned(), ..Default::default() },
            )),
            ..Default::default()
        }),
    }
}

pub(super) fn data_source(source: &DataSource) -> pb::core::DataSource {
    let specifier = match source {
        DataSource::File(path) => Specifier::Filename(path.clone()),
        DataSource::Environment(name) => Specifier::EnvironmentVariable(name.clone()),
        DataSource::Inline(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Specifier::InlineString(text.to_owned()),
            Err(_) => Specifier::InlineBytes(bytes.clone()),
        },
    };
    pb::core::DataSource { watched_directory: None, specifier: Some(specifier) }
}

fn version(version: TlsVersion) -> pb::tls::tls_parameters::TlsProtocol {
    match version {
        TlsVersion::V1_2 => pb::tls::tls_parameters::TlsProtocol::TlSv12,
        TlsVersion::V1_3 => pb::tls::tls_parameters::TlsProtocol::TlSv13,
    }
}
