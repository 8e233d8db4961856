//! TLS contexts.

use std::mem::take;

use pillion_model::tls::{
    Certificate, DataSource, DownstreamTls, NameKind, NameMatcher, Roots, TlsVersion, UpstreamTls, Validation,
};

use super::Context;
use super::context::{ignored, inert, is};
use super::matcher::string;
use super::source::source;
use crate::pb;
use crate::type_url::SECRET;
use pb::core::data_source::Specifier;
use pb::tls::common_tls_context::ValidationContextType;
use pb::tls::downstream_tls_context::SessionTicketKeysType;
use pb::tls::tls_parameters::TlsProtocol;

/// The TLS context of a transport socket; `None` for plaintext.
fn context<M: prost::Message + prost::Name + Default, T>(
    cx: &mut Context,
    socket: pb::core::TransportSocket,
    read: impl FnOnce(&mut Context, M) -> T,
) -> Option<T> {
    use pb::core::transport_socket::ConfigType;
    match socket.config_type {
        Some(ConfigType::TypedConfig(any)) => cx.at("typed_config", |cx| {
            if is::<pb::raw_buffer::RawBuffer>(&any) {
                return None;
            }
            if !is::<M>(&any) {
                cx.unsupported_type(&any, &format!("{}, {}", M::NAME, "RawBuffer"));
                return None;
            }
            let message = cx.unpack(&any);
            Some(read(cx, message))
        }),
        None if socket.name == pb::names::RAW => None,
        None => {
            cx.missing("typed_config");
            None
        }
    }
}

pub(super) fn downstream(cx: &mut Context, socket: pb::core::TransportSocket) -> Option<DownstreamTls> {
    context(cx, socket, downstream_context)
}

pub(super) fn upstream(cx: &mut Context, socket: pb::core::TransportSocket) -> Option<UpstreamTls> {
    context(cx, socket, upstream_context)
}

fn downstream_context(cx: &mut Context, mut tls: pb::tls::DownstreamTlsContext) -> DownstreamTls {
    // Sessions are never resumed.
    inert!(
        tls,
        disable_stateful_session_resumption = true,
        require_sni = Some(pb::BoolValue { value: false })
    );
    ignored!(cx, tls, session_timeout, prefer_client_ciphers);
    if matches!(
        tls.session_ticket_keys_type,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(_))
    ) {
        tls.session_ticket_keys_type = None;
    }
    let require = tls.require_client_certificate.take().is_some_and(|require| require.value);
    let common = cx.some("common_tls_context", tls.common_tls_context.take(), |cx, context| {
        common(cx, context, TlsVersion::V1_3)
    });
    cx.rest(&tls);
    let Some(common) = common else {
        cx.missing("common_tls_context");
        return DownstreamTls {
            certificates: Vec::new(),
            validation: None,
            require_client_certificate: true,
            alpn: Vec::new(),
            min_version: TlsVersion::V1_3,
            max_version: TlsVersion::V1_3,
        };
    };
    if common.certificates.is_empty() {
        cx.refuse_at("common_tls_context", "has no certificate; a listener has to present one");
    }
    if require && common.validation.is_none() {
        cx.refuse_at("require_client_certificate", "needs a validation context that says whom to trust");
    }
    DownstreamTls {
        certificates: common.certificates,
        validation: common.validation,
        require_client_certificate: require,
        alpn: common.alpn,
        min_version: common.versions.0,
        max_version: common.versions.1,
    }
}

fn upstream_context(cx: &mut Context, mut tls: pb::tls::UpstreamTlsContext) -> UpstreamTls {
    // Sessions are never resumed.
    tls.max_session_keys = None;
    inert!(tls, enforce_rsa_key_usage = Some(pb::BoolValue { value: true }));
    let sni = take(&mut tls.sni);
    let context = tls.common_tls_context.take().unwrap_or_default();
    let mut common = cx.at("common_tls_context", |cx| common(cx, context, TlsVersion::V1_2));
    cx.rest(&tls);
    if common.certificates.len() > 1 {
        cx.refuse_at("common_tls_context", "has more than one certificate; a client presents one");
    }
    UpstreamTls {
        certificate: common.certificates.pop(),
        validation: common.validation,
        sni,
        alpn: common.alpn,
        min_version: common.versions.0,
        max_version: common.versions.1,
    }
}

struct Common {
    certificates: Vec<Certificate>,
    validation: Option<Validation>,
    alpn: Vec<String>,
    versions: (TlsVersion, TlsVersion),
}

/// `newest`: what Envoy takes where nothing is said, which is not the same for both sides.
fn common(cx: &mut Context, mut tls: pb::tls::CommonTlsContext, newest: TlsVersion) -> Common {
    ignored!(cx, tls, key_log);
    let versions = cx
        .some("tls_params", tls.tls_params.take(), |cx, params| parameters(cx, params, newest))
        .unwrap_or((TlsVersion::V1_2, newest));
    let mut certificates = cx.each("tls_certificates", take(&mut tls.tls_certificates), certificate);
    let secrets = take(&mut tls.tls_certificate_sds_secret_configs);
    certificates.extend(
        cx.each("tls_certificate_sds_secret_configs", secrets, secret).into_iter().map(Certificate::Secret),
    );
    let alpn = take(&mut tls.alpn_protocols);
    let validation = tls.validation_context_type.take().and_then(|kind| validation(cx, kind));
    cx.rest(&tls);
    Common { certificates, validation, alpn, versions }
}

fn parameters(
    cx: &mut Context,
    mut params: pb::tls::TlsParameters,
    newest: TlsVersion,
) -> (TlsVersion, TlsVersion) {
    let oldest = version(cx, "tls_minimum_protocol_version", take(&mut params.tls_minimum_protocol_version));
    let highest = version(cx, "tls_maximum_protocol_version", take(&mut params.tls_maximum_protocol_version));
    cx.rest(&params);
    let oldest = oldest.unwrap_or(TlsVersion::V1_2);
    let highest = highest.unwrap_or_else(|| newest.max(oldest));
    if oldest > highest {
        cx.refuse_at("tls_minimum_protocol_version", "is newer than tls_maximum_protocol_version");
    }
    (oldest, highest)
}

fn version(cx: &mut Context, field: &str, value: i32) -> Option<TlsVersion> {
    match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::TlsAuto) => None,
        Ok(TlsProtocol::TlSv12) => Some(TlsVersion::V1_2),
        Ok(TlsProtocol::TlSv13) => Some(TlsVersion::V1_3),
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) | Err(_) => {
            cx.refuse_at(field, "is not supported; supported: TLSv1_2, TLSv1_3");
            None
        }
    }
}

pub(super) fn certificate(cx: &mut Context, mut certificate: pb::tls::TlsCertificate) -> Certificate {
    let chain = required(cx, "certificate_chain", certificate.certificate_chain.take());
    let key = required(cx, "private_key", certificate.private_key.take());
    cx.rest(&certificate);
    Certificate::Given { chain, key }
}

fn required(cx: &mut Context, field: &str, source: Option<pb::core::DataSource>) -> DataSource {
    match source {
        Some(source) => cx.at(field, |cx| data_source(cx, source)),
        None => {
            cx.missing(field);
            DataSource::Inline(Vec::new())
        }
    }
}

pub(super) fn data_source(cx: &mut Context, mut source: pb::core::DataSource) -> DataSource {
    ignored!(cx, source, watched_directory);
    match source.specifier {
        Some(Specifier::Filename(path)) => DataSource::File(path),
        Some(Specifier::InlineBytes(bytes)) => DataSource::Inline(bytes),
        Some(Specifier::InlineString(text)) => DataSource::Inline(text.into_bytes()),
        Some(Specifier::EnvironmentVariable(name)) => DataSource::Environment(name),
        None => {
            cx.refuse(
                "says nothing; want one of filename, inline_bytes, inline_string, environment_variable",
            );
            DataSource::Inline(Vec::new())
        }
    }
}

/// The name of a secret.
fn secret(cx: &mut Context, mut secret: pb::tls::SdsSecretConfig) -> String {
    let from = cx.some("sds_config", secret.sds_config.take(), source);
    let name = take(&mut secret.name);
    let key = cx.refer(SECRET, &name, from);
    if name.is_empty() {
        cx.missing("name");
    }
    cx.rest(&secret);
    key
}

fn validation(cx: &mut Context, kind: ValidationContextType) -> Option<Validation> {
    match kind {
        ValidationContextType::ValidationContext(context) => {
            cx.at("validation_context", |cx| validation_context(cx, context, None))
        }
        ValidationContextType::ValidationContextSdsSecretConfig(config) => {
            let roots = cx.at("validation_context_sds_secret_config", |cx| secret(cx, config));
            Some(Validation { roots: Roots::Secret(roots), names: Vec::new() })
        }
        ValidationContextType::CombinedValidationContext(mut combined) => {
            cx.at("combined_validation_context", |cx| {
                let config = combined.validation_context_sds_secret_config.take();
                let roots = cx.some("validation_context_sds_secret_config", config, secret);
                let default = combined.default_validation_context.take().unwrap_or_default();
                let validation =
                    cx.at("default_validation_context", |cx| validation_context(cx, default, roots));
                cx.rest(&combined);
                validation
            })
        }
        _ => {
            cx.refuse_at(
                "validation_context_certificate_provider",
                "is not supported; supported: validation_context, validation_context_sds_secret_config, \
                 combined_validation_context",
            );
            None
        }
    }
}

fn validation_context(
    cx: &mut Context,
    mut context: pb::tls::CertificateValidationContext,
    secret: Option<String>,
) -> Option<Validation> {
    let trusted = cx.some("trusted_ca", context.trusted_ca.take(), data_source);
    let system = context.system_root_certs.take();
    let names =
        cx.each("match_typed_subject_alt_names", take(&mut context.match_typed_subject_alt_names), name);
    if !take(&mut context.match_subject_alt_names).is_empty() {
        cx.refuse_at("match_subject_alt_names", "is not supported; use match_typed_subject_alt_names");
    }
    cx.rest(&context);
    let roots = match (secret, trusted, system) {
        (Some(secret), None, None) => Roots::Secret(secret),
        (None, Some(source), None) => Roots::Given(source),
        (None, None, Some(_)) => Roots::System,
        (None, None, None) => {
            cx.refuse("trusts nobody in particular; want trusted_ca, system_root_certs or an SDS secret");
            return None;
        }
        _ => {
            cx.refuse("has several kinds of roots; want one of trusted_ca, system_root_certs, an SDS secret");
            return None;
        }
    };
    Some(Validation { roots, names })
}

fn name(cx: &mut Context, mut name: pb::tls::SubjectAltNameMatcher) -> NameMatcher {
    use pb::tls::subject_alt_name_matcher::SanType;
    let kind = match SanType::try_from(take(&mut name.san_type)) {
        Ok(SanType::Uri) => NameKind::Uri,
        Ok(SanType::Dns) => NameKind::Dns,
        Ok(SanType::IpAddress) => NameKind::Ip,
        Ok(SanType::Email) => NameKind::Email,
        _ => {
            cx.refuse_at("san_type", "want one of EMAIL, DNS, URI, IP_ADDRESS");
            NameKind::Uri
        }
    };
    let matcher = name.matcher.take().unwrap_or_default();
    let matcher = cx.at("matcher", |cx| string(cx, matcher));
    cx.rest(&name);
    NameMatcher { kind, matcher }
}
