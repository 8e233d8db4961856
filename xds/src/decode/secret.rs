//! Secrets (SDS).

use std::mem::take;

use pillion_model::tls::{Certificate, DataSource};

use super::Context;
use super::tls;
use crate::pb;
use pb::tls::secret::Type;

/// What an SDS secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// What it is.
    pub value: SecretValue,
    /// The files it names are read again when something is moved into this folder.
    pub watched_directory: Option<String>,
}

/// The kinds of secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretValue {
    /// A certificate chain with its key.
    Certificate(Certificate),
    /// Root certificates.
    Roots(DataSource),
}

impl Secret {
    /// Files that it names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let sources = match &self.value {
            SecretValue::Certificate(Certificate::Given { chain, key }) => [Some(chain), Some(key)],
            SecretValue::Certificate(Certificate::Secret(_)) => [None, None],
            SecretValue::Roots(source) => [Some(source), None],
        };
        sources.into_iter().flatten().filter_map(|source| match source {
            DataSource::File(path) => Some(path.as_str()),
            DataSource::Inline(_) | DataSource::Environment(_) => None,
        })
    }
}

pub(crate) fn secret(cx: &mut Context, mut m: pb::tls::Secret) -> Secret {
    let name = take(&mut m.name);
    if name.is_empty() {
        cx.missing("name");
    }
    let mut watched_directory = None;
    let mut watched = |directory: Option<pb::core::WatchedDirectory>| {
        watched_directory = directory.map(|directory| directory.path);
    };
    let value = match m.r#type.take() {
        Some(Type::TlsCertificate(mut certificate)) => {
            watched(certificate.watched_directory.take());
            let certificate = cx.at("tls_certificate", |cx| tls::certificate(cx, certificate));
            SecretValue::Certificate(certificate)
        }
        Some(Type::ValidationContext(mut context)) => {
            watched(context.watched_directory.take());
            let trusted = context.trusted_ca.take();
            cx.at("validation_context", |cx| {
                let source = cx.some("trusted_ca", trusted, tls::data_source);
                cx.rest(&context);
                if source.is_none() {
                    cx.missing("trusted_ca");
                }
                SecretValue::Roots(source.unwrap_or_else(|| DataSource::Inline(Vec::new())))
            })
        }
        Some(Type::SessionTicketKeys(_) | Type::GenericSecret(_)) | None => {
            cx.refuse("want one of tls_certificate, validation_context");
            SecretValue::Roots(DataSource::Inline(Vec::new()))
        }
    };
    cx.rest(&m);
    Secret { name, value, watched_directory }
}
