//! Trust bundles as documents: JWK sets by the SPIFFE Trust Domain and Bundle specification.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use pillion_model::name::TrustDomain;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::*;
use x509_parser::public_key::PublicKey;

/// A bundle, read and judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// `spiffe_sequence`.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: how often to look for a newer one.
    pub refresh_hint: Option<Duration>,
    /// Root certificates, DER, those that have not expired.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a document is no bundle for a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It is no JSON, or not of the form of a JWK set.
    #[error("it is no JWK set: {0}")]
    Form(String),
    /// A key that is said to be a root cannot be one.
    #[error("keys[{at}] cannot be a root of {domain}: {reason}")]
    Key {
        /// Which key, from 0.
        at: usize,
        /// Whose root.
        domain: TrustDomain,
        /// Why not.
        reason: String,
    },
    /// There is no root in it.
    #[error("it has no key with use x509-svid")]
    NoRoots,
    /// They are all over.
    #[error("every root in it has expired")]
    Expired,
    /// Too many.
    #[error("it has {0} roots, want at most {ROOTS_MAX}")]
    TooMany(usize),
}

impl Bundle {
    /// Reads a document as the bundle of `domain`. Keys of other uses are passed over, as the
    /// specification wants.
    ///
    /// # Errors
    ///
    /// [`BundleError`]: nothing of it is to be used then.
    pub fn parse(text: &[u8], domain: &TrustDomain, now: SystemTime) -> Result<Self, BundleError> {
        let form = |reason: &str| BundleError::Form(reason.to_owned());
        let value: Value = serde_json::from_slice(text).map_err(|error| form(&error.to_string()))?;
        let number = |name: &str| match value.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(number) => {
                number.as_u64().map(Some).ok_or_else(|| form(&format!("{name} is no whole number")))
            }
        };
        let keys = value["keys"].as_array().ok_or_else(|| form("`keys` is no list"))?;
        let (mut roots, mut found) = (Vec::new(), BTreeSet::new());
        for (at, key) in keys.iter().enumerate().filter(|(_, key)| key["use"] == "x509-svid") {
            let refuse = |reason: String| BundleError::Key { at, domain: domain.clone(), reason };
            let root = root(key, domain).map_err(refuse)?;
            if found.insert(root.der.to_vec()) {
                roots.push(root);
            }
        }
        match roots.len() {
            0 => return Err(BundleError::NoRoots),
            many if many > ROOTS_MAX => return Err(BundleError::TooMany(many)),
            _ => {}
        }
        roots.retain(|root| now < root.not_after);
        if roots.is_empty() {
            return Err(BundleError::Expired);
        }
        Ok(Self {
            sequence: number("spiffe_sequence")?,
            refresh_hint: number("spiffe_refresh_hint")?.map(Duration::from_secs),
            roots: roots.into_iter().map(|root| root.der).collect(),
        })
    }

    /// The document of a bundle.
    pub fn document(roots: &[CertificateDer<'static>], sequence: u64, refresh_hint: Duration) -> Value {
        let keys: Vec<Value> = roots.iter().filter_map(jwk).collect();
        json!({
            "keys": keys,
            "spiffe_sequence": sequence,
            "spiffe_refresh_hint": refresh_hint.as_secs().max(1),
        })
    }
}

/// Those of `roots` that have not expired.
pub(super) fn unexpired(roots: &[CertificateDer<'static>], now: SystemTime) -> Vec<CertificateDer<'static>> {
    let is_good = |root: &&CertificateDer<'static>| end(root).is_some_and(|end| now < end);
    roots.iter().filter(is_good).cloned().collect()
}

/// The end of a certificate's validity.
pub(super) fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some(at(parsed.validity().not_after.timestamp()))
}

fn at(timestamp: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(timestamp).unwrap_or_default());
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

struct Root {
    der: CertificateDer<'static>,
    not_after: SystemTime,
}

fn root(key: &Value, domain: &TrustDomain) -> Result<Root, String> {
    let chain = key["x5c"].as_array().ok_or("it has no x5c")?;
    let [Value::String(text)] = &chain[..] else {
        return Err(format!("x5c holds {} certificates, want one", chain.len()));
    };
    let der = STANDARD.decode(text).map_err(|error| format!("x5c is no base64: {error}"))?;
    let (rest, parsed) = parse_x509_certificate(&der).map_err(|error| format!("x5c: {error}"))?;
    if !rest.is_empty() {
        return Err(format!("x5c: {} bytes follow the certificate", rest.len()));
    }
    if !parsed.is_ca() {
        return Err("its certificate is no certificate authority's".to_owned());
    }
    let usage = parsed.key_usage().map_err(|error| format!("x5c: {error}"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its certificate may not sign certificates".to_owned());
    }
    let names = parsed.subject_alternative_name().map_err(|error| format!("x5c: {error}"))?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::URI(uri) = name
            && *uri != format!("spiffe://{domain}")
        {
            return Err(format!("its certificate is {uri}'s"));
        }
    }
    let not_after = at(parsed.validity().not_after.timestamp());
    Ok(Root { not_after, der: CertificateDer::from(der.clone()) })
}

/// A root as a key (RFC 7517): of P-256, P-384 or RSA. Others cannot be told, and are not.
fn jwk(root: &CertificateDer<'static>) -> Option<Value> {
    let (_, parsed) = parse_x509_certificate(root).ok()?;
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = match parsed.public_key().parsed() {
        Ok(PublicKey::EC(point)) => match point.data() {
            [4, point @ ..] if [64, 96].contains(&point.len()) => {
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                Some(json!({"kty": "EC", "crv": curve, "x": text(x), "y": text(y)}))
            }
            _ => None,
        },
        Ok(PublicKey::RSA(rsa)) => {
            let unpadded = |bytes: &[u8]| {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                text(&bytes[zeros..])
            };
            Some(json!({"kty": "RSA", "n": unpadded(rsa.modulus), "e": unpadded(rsa.exponent)}))
        }
        _ => None,
    };
    let Some(mut key) = key else {
        tracing::error!(subject = %parsed.subject(), "a root's key is of a kind that no bundle can hold");
        return None;
    };
    key["use"] = "x509-svid".into();
    key["x5c"] = json!([STANDARD.encode(root)]);
    Some(key)
}

/// Of one bundle.
const ROOTS_MAX: usize = 64;
