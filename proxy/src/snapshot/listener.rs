//! Compiled listeners and filter chains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pillion_model::listener::{self as model, Direction, FilterChainMatch};
use pillion_model::rbac::Rbac;
use pillion_model::tls::{Certificate, DownstreamTls, SVID_SECRET};
use pillion_net::tls::{PeerCertificate, Secrets};
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::hcm::Hcm;
use super::{ClusterRef, Compiler};
use crate::access_log::AccessLogger;
use crate::metrics::Symbol;
use crate::upstream::ClusterMap;

/// A compiled listener.
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    /// Its name in statistics.
    pub(crate) symbol: Symbol,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) direction: Direction,
    pub(crate) proxy_protocol: Option<model::ProxyProtocol>,
    pub(crate) tls_inspector: bool,
    pub(crate) original_dst: bool,
    pub(crate) filters_timeout: Duration,
    pub(crate) chains: Vec<Arc<Chain>>,
    pub(crate) default_chain: Option<Arc<Chain>>,
    pub(crate) access_logs: Vec<Arc<AccessLogger>>,
}

/// A compiled filter chain.
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) matches: FilterChainMatch,
    pub(crate) tls: Option<ChainTls>,
    pub(crate) rbac: Vec<Rbac>,
    pub(crate) terminal: Terminal,
    /// Cancelled when the chain is gone or its TLS changed: its connections drain.
    pub(crate) retired: CancellationToken,
}

/// TLS of a filter chain.
pub(crate) struct ChainTls {
    pub(crate) config: Arc<ServerConfig>,
    /// The first URI of our own certificate, where it is the mesh's.
    pub(crate) own_uri: Option<Arc<str>>,
    context: DownstreamTls,
    identity_generation: u64,
}

/// What carries the connection.
pub(crate) enum Terminal {
    Http(Arc<Hcm>),
    Tcp(Arc<TcpProxy>),
}

/// A compiled TCP proxy.
pub(crate) struct TcpProxy {
    pub(crate) clusters: Vec<(ClusterRef, u32)>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) connect_attempts: u32,
    pub(crate) access_logs: Vec<Arc<AccessLogger>>,
}

impl Listener {
    /// Compiles `listener`; what did not change is taken from `old`.
    pub(super) fn compile(
        compiler: &Compiler<'_>,
        listener: &model::Listener,
        clusters: &ClusterMap,
        old: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, String> {
        let chains = listener
            .filter_chains
            .iter()
            .map(|chain| Chain::compile(compiler, chain, clusters, old))
            .collect::<Result<Vec<_>, _>>()?;
        let default_chain = listener
            .default_filter_chain
            .as_ref()
            .map(|chain| Chain::compile(compiler, chain, clusters, old))
            .transpose()?;
        Ok(Arc::new(Self {
            name: listener.name.as_str().into(),
            symbol: compiler.symbols.intern(&listener.name),
            address: listener.address,
            direction: listener.direction,
            proxy_protocol: listener.proxy_protocol,
            tls_inspector: listener.tls_inspector,
            original_dst: listener.original_dst,
            filters_timeout: listener.listener_filters_timeout,
            chains,
            default_chain,
            access_logs: AccessLogger::compile_all(&listener.access_logs, compiler.writers)?,
        }))
    }

    /// Every chain.
    pub(crate) fn all_chains(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// The chain that takes over from `chain`: same name and TLS.
    pub(crate) fn successor(&self, chain: &Chain) -> Option<&Arc<Chain>> {
        self.all_chains().find(|candidate| candidate.name == chain.name && candidate.has_same_tls(chain))
    }
}

impl Chain {
    fn compile(
        compiler: &Compiler<'_>,
        chain: &model::FilterChain,
        clusters: &ClusterMap,
        old: Option<&Arc<Listener>>,
    ) -> Result<Arc<Self>, String> {
        let at = |reason: String| format!("filter chain `{}`: {reason}", chain.name);
        let generation = compiler.identity_generation;
        let old = old.and_then(|old| {
            old.all_chains().find(|old| {
                old.name == chain.name
                    && old.tls.as_ref().map(|tls| &tls.context) == chain.tls.as_ref()
                    && old.tls.as_ref().is_none_or(|tls| tls.identity_generation == generation)
            })
        });
        let tls = match (&chain.tls, old.and_then(|old| old.tls.as_ref())) {
            (None, _) => None,
            (Some(context), Some(old)) => Some(ChainTls {
                config: Arc::clone(&old.config),
                own_uri: old.own_uri.clone(),
                context: context.clone(),
                identity_generation: generation,
            }),
            (Some(context), None) => Some(ChainTls {
                config: pillion_net::tls::server_config(context, &*compiler.secrets)
                    .map_err(|error| at(error.to_string()))?,
                own_uri: own_uri(context, &*compiler.secrets),
                context: context.clone(),
                identity_generation: generation,
            }),
        };
        let terminal = match &chain.terminal {
            model::Terminal::Http(hcm) => {
                let old = old.and_then(|old| match &old.terminal {
                    Terminal::Http(hcm) => Some(hcm),
                    Terminal::Tcp(_) => None,
                });
                Terminal::Http(Hcm::compile(compiler, hcm, clusters, old).map_err(at)?)
            }
            model::Terminal::Tcp(tcp) => Terminal::Tcp(Arc::new(TcpProxy {
                clusters: tcp
                    .clusters
                    .iter()
                    .map(|(name, weight)| (ClusterRef::find(compiler, name, clusters), *weight))
                    .collect(),
                idle_timeout: tcp.idle_timeout,
                connect_attempts: tcp.connect_attempts.max(1),
                access_logs: AccessLogger::compile_all(&tcp.access_logs, compiler.writers).map_err(at)?,
            })),
        };
        Ok(Arc::new(Self {
            name: chain.name.clone(),
            matches: chain.matches.clone(),
            tls,
            rbac: chain.rbac.clone(),
            terminal,
            retired: old.map_or_else(CancellationToken::new, |old| old.retired.clone()),
        }))
    }

    fn has_same_tls(&self, other: &Self) -> bool {
        match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(&a.config, &b.config),
            _ => false,
        }
    }
}

fn own_uri(context: &DownstreamTls, secrets: &dyn Secrets) -> Option<Arc<str>> {
    let svid = |certificate: &Certificate| *certificate == Certificate::Secret(SVID_SECRET.to_owned());
    context.certificates.first().filter(|first| svid(first))?;
    let own = secrets.certificate(SVID_SECRET)?;
    let certificate = PeerCertificate::parse(&own.cert).ok()?;
    certificate.uri_sans.first().map(|uri| uri.as_str().into())
}
