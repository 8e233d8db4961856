//! Transport sockets of a cluster: plaintext, or TLS compiled when the configuration is applied and
//! again when secrets rotate.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use arc_swap::ArcSwapOption;
use pillion_model::cluster::Cluster as Config;
use pillion_model::tls::UpstreamTls;
use pillion_net::tls::{NoSecrets, Secrets, TlsError, client_config, explain, server_name};
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connect::ConnectError;
use super::io::Stream;
use super::state::{ClusterStats, next_id};

/// How connections to some of a cluster's endpoints are secured.
pub struct Transport {
    /// Unique in the process: part of a pool's key.
    pub(super) id: u64,
    /// For people.
    pub name: String,
    criteria: BTreeMap<String, String>,
    context: Option<UpstreamTls>,
    /// Empty while a secret is not known yet.
    config: ArcSwapOption<ClientConfig>,
    /// Grows when the configuration is rebuilt: older connections are drained.
    generation: AtomicU64,
}

/// The transports of a cluster in order of choice; the last one matches every endpoint.
pub(super) fn compile(config: &Config, secrets: &dyn Secrets) -> Result<Vec<Arc<Transport>>, String> {
    let mut transports = Vec::with_capacity(config.transports.len() + 1);
    for (at, it) in config.transports.iter().enumerate() {
        let transport = Transport::new(&it.name, it.criteria.clone(), it.tls.as_ref(), secrets)
            .map_err(|error| format!("transport_socket_matches[{at}].transport_socket: {error}"))?;
        transports.push(Arc::new(transport));
    }
    let default = Transport::new("", BTreeMap::new(), config.tls.as_ref(), secrets)
        .map_err(|error| format!("transport_socket: {error}"))?;
    transports.push(Arc::new(default));
    Ok(transports)
}

/// Whether the TLS contexts of a cluster can be used; secrets may come later.
pub(crate) fn check(config: &Config) -> Result<(), String> {
    compile(config, &NoSecrets).map(drop)
}

impl Transport {
    fn new(
        name: &str,
        criteria: BTreeMap<String, String>,
        context: Option<&UpstreamTls>,
        secrets: &dyn Secrets,
    ) -> Result<Self, TlsError> {
        let transport = Self {
            id: next_id(),
            name: name.to_owned(),
            criteria,
            context: context.cloned(),
            config: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
        };
        match transport.rebuild(secrets) {
            // Connections fail until the secret comes with `Clusters::rotate`.
            Ok(()) | Err(TlsError::MissingSecret { .. }) => Ok(transport),
            Err(error) => Err(error),
        }
    }

    /// Makes the TLS configuration anew; connections made with the one before are drained.
    pub(super) fn rebuild(&self, secrets: &dyn Secrets) -> Result<(), TlsError> {
        let Some(context) = &self.context else { return Ok(()) };
        self.config.store(Some(client_config(context, secrets)?));
        self.generation.fetch_add(1, Release);
        Ok(())
    }

    /// Whether its TLS context names secrets.
    pub(super) fn names_secrets(&self) -> bool {
        self.context.as_ref().is_some_and(UpstreamTls::names_secrets)
    }

    /// Whether connections are secured.
    pub fn is_tls(&self) -> bool {
        self.context.is_some()
    }

    /// Whether ALPN offers HTTP/2.
    pub(super) fn offers_http2(&self) -> bool {
        self.context.as_ref().is_some_and(|context| context.alpn.iter().any(|protocol| protocol == "h2"))
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Whether an endpoint with this metadata uses this transport.
    pub(super) fn matches(&self, metadata: &BTreeMap<String, String>) -> bool {
        self.criteria.iter().all(|(key, value)| metadata.get(key) == Some(value))
    }

    /// Secures a new TCP connection as configured.
    pub(super) async fn secure(
        &self,
        stream: TcpStream,
        address: IpAddr,
        stats: &ClusterStats,
    ) -> Result<Stream, ConnectError> {
        let Some(context) = &self.context else { return Ok(Stream::Tcp(stream)) };
        let Some(config) = self.config.load_full() else {
            return Err(ConnectError::refused(
                "TLS_error: a secret of the cluster's TLS context is not known yet",
            ));
        };
        let connecting = TlsConnector::from(config).connect(server_name(&context.sni, address), stream);
        match connecting.await {
            Ok(stream) => {
                stats.ssl_handshake.fetch_add(1, Relaxed);
                Ok(Stream::Tls(Box::new(stream)))
            }
            Err(error) => {
                count_refusal(&error, stats);
                Err(ConnectError::refused(format!("TLS_error: {}", explain(&error))))
            }
        }
    }
}

/// Counts a certificate that was refused: for its names by our own rules, or as X.509.
fn count_refusal(error: &io::Error, stats: &ClusterStats) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let counter = match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(_))) => &stats.ssl_fail_verify_san,
        Some(rustls::Error::InvalidCertificate(_)) => &stats.ssl_fail_verify_error,
        _ => &stats.ssl_connection_error,
    };
    counter.fetch_add(1, Relaxed);
}
