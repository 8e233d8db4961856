//! Secrets by name, read from wherever SDS says they are.

use std::collections::HashMap;
use std::sync::Arc;

use pillion_net::tls::{Roots, Secrets, TlsError, load_certificate, load_roots};
use pillion_xds::decode::{Secret, SecretValue};
use rustls::sign::CertifiedKey;

/// What TLS contexts find.
#[derive(Default)]
pub(super) struct Loaded {
    certificates: HashMap<String, Arc<CertifiedKey>>,
    roots: HashMap<String, Arc<Roots>>,
}

impl Secrets for Loaded {
    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.certificates.get(name).cloned()
    }

    fn roots(&self, name: &str) -> Option<Arc<Roots>> {
        self.roots.get(name).cloned()
    }
}

impl Loaded {
    /// Reads `secrets` anew; one that cannot be read stays as it is in `before`, and is reported.
    pub(super) fn load<'a>(
        secrets: impl Iterator<Item = (&'a str, &'a Secret)>,
        before: &Self,
    ) -> (Self, Vec<(String, String)>) {
        let (mut loaded, mut failed) = (Self::default(), Vec::new());
        for (key, secret) in secrets {
            if let Err(error) = loaded.read(key, secret) {
                failed.push((key.to_owned(), error.to_string()));
                if let Some(before) = before.certificates.get(key) {
                    loaded.certificates.insert(key.to_owned(), Arc::clone(before));
                }
                if let Some(before) = before.roots.get(key) {
                    loaded.roots.insert(key.to_owned(), Arc::clone(before));
                }
            }
        }
        (loaded, failed)
    }

    fn read(&mut self, key: &str, secret: &Secret) -> Result<(), TlsError> {
        match &secret.value {
            SecretValue::Certificate(certificate) => {
                self.certificates.insert(key.to_owned(), load_certificate(certificate)?);
            }
            SecretValue::Roots(source) => {
                self.roots.insert(key.to_owned(), load_roots(source)?);
            }
        }
        Ok(())
    }
}

/// Whether a secret can be read.
pub(super) fn check(secret: &Secret) -> Result<(), String> {
    Loaded::default().read(&secret.name, secret).map_err(|error| error.to_string())
}
