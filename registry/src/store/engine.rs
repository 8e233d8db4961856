//! Which engine, as operators write it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use pillion_net::resolve::Target;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// etcd's port for clients.
const ETCD_PORT: u16 = 2379;
/// The prefix of a mesh that names none.
const PREFIX_DEFAULT: &str = "pillion/";

/// Where state is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// In a file of the data directory.
    #[default]
    Embedded,
    /// In etcd, shared with other registries: `etcd://host[:2379],…[/prefix]`.
    Etcd {
        /// The members; any of them serves.
        members: Vec<Target>,
        /// In front of every key, with a slash at its end.
        prefix: String,
    },
}

/// Why a text names no engine.
#[derive(Debug, thiserror::Error)]
#[error("`{found}`: {reason}; want etcd://host[:2379],…[/prefix]")]
pub struct EngineError {
    found: String,
    reason: String,
}

impl FromStr for Engine {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let refuse = |reason: String| EngineError { found: text.to_owned(), reason };
        let rest = text.strip_prefix("etcd://").ok_or_else(|| refuse("no known engine".to_owned()))?;
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, PREFIX_DEFAULT));
        if members.contains('@') {
            return Err(refuse(
                "no user and password here; etcd knows us by a client certificate".to_owned(),
            ));
        }
        let members = Target::parse_list(members, ETCD_PORT).map_err(|error| refuse(error.to_string()))?;
        let prefix = match prefix.trim_end_matches('/') {
            "" => PREFIX_DEFAULT.to_owned(),
            prefix => format!("{prefix}/"),
        };
        if members.is_empty() {
            return Err(refuse("no host".to_owned()));
        }
        Ok(Self::Etcd { members, prefix })
    }
}

/// Certificates for the way to etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineTls {
    /// PEM of those who sign etcd's certificates; without it there is no TLS.
    pub ca: Option<PathBuf>,
    /// PEM of our certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why there is no TLS to etcd.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct EngineTlsError {
    path: PathBuf,
    reason: String,
}

impl EngineTls {
    /// The configuration of connections; `None`: plaintext.
    ///
    /// # Errors
    ///
    /// [`EngineTlsError`] names the file.
    pub fn config(&self) -> Result<Option<Arc<ClientConfig>>, EngineTlsError> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| failed(ca, &error))?;
        }
        let builder = ClientConfig::builder_with_provider(pillion_net::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(ca, &error))?
            .with_root_certificates(roots);
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let pem = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, pem)
                    .map_err(|error| failed(certificate, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EngineTlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| failed(path, &error))?;
    if read.is_empty() {
        return Err(failed(path, &"it holds no certificate"));
    }
    Ok(read)
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> EngineTlsError {
    EngineTlsError { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read_as_written() {
        for (text, hosts, want) in [
            ("etcd://a", "a:2379", "pillion/"),
            ("etcd://a:1/", "a:1", "pillion/"),
            ("etcd://a,b:2380/mesh", "a:2379 b:2380", "mesh/"),
            ("etcd://[::1]:2379/one/two/", "[::1]:2379", "one/two/"),
        ] {
            let Ok(Engine::Etcd { members, prefix }) = text.parse() else { panic!("{text}") };
            let members: Vec<_> = members.iter().map(ToString::to_string).collect();
            assert_eq!((members.join(" "), prefix), (hosts.to_owned(), want.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_names_no_engine_says_what_would() {
        for text in ["", "redb", "etcd://", "http://a:2379", "etcd://root:secret@a", "etcd://a:99999"] {
            let error = text.parse::<Engine>().expect_err(text).to_string();
            assert!(error.contains("etcd://host"), "{error}");
        }
    }
}
