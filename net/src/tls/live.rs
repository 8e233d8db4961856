//! TLS configurations that follow the identity in force.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use pillion_model::tls::{DownstreamTls, UpstreamTls};
use rustls::{ClientConfig, ServerConfig};

use super::{TlsError, client_config, server_config};
use crate::identity::{Identity, IdentityWatch};

/// A mesh listener's TLS: rebuilt when the identity changes, else served from memory.
pub struct ServerTls {
    context: DownstreamTls,
    made: Made<ServerConfig>,
}

/// A mesh client's TLS: rebuilt when the identity changes, else served from memory.
pub struct ClientTls {
    context: UpstreamTls,
    made: Made<ClientConfig>,
}

impl ServerTls {
    /// The identity in force, and its changes.
    pub fn identity(&self) -> &IdentityWatch {
        &self.made.identity
    }

    /// TLS by `context`, with the secrets of the identity in force.
    pub fn new(context: DownstreamTls, identity: IdentityWatch) -> Self {
        Self { context, made: Made::new(identity) }
    }

    /// The configuration for the next connection.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; a missing secret as long as there is no identity.
    pub fn current(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.made.current(|identity| server_config(&self.context, identity))
    }
}

impl ClientTls {
    /// TLS by `context`, with the secrets of the identity in force.
    pub fn new(context: UpstreamTls, identity: IdentityWatch) -> Self {
        Self { context, made: Made::new(identity) }
    }

    /// The server name sent.
    pub fn sni(&self) -> &str {
        &self.context.sni
    }

    /// The configuration for the next connection.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; a missing secret as long as there is no identity.
    pub fn current(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.made.current(|identity| client_config(&self.context, identity))
    }
}

/// A value made from an identity, with the identity it was made from.
struct Made<T> {
    identity: IdentityWatch,
    last: ArcSwapOption<(Arc<Identity>, Arc<T>)>,
}

impl<T> Made<T> {
    fn new(identity: IdentityWatch) -> Self {
        Self { identity, last: ArcSwapOption::empty() }
    }

    fn current(&self, make: impl FnOnce(&Identity) -> Result<Arc<T>, TlsError>) -> Result<Arc<T>, TlsError> {
        let identity = self
            .identity
            .current()
            .ok_or_else(|| TlsError::missing("tls_certificates[0]", pillion_model::tls::SVID_SECRET))?;
        if let Some(last) = &*self.last.load()
            && Arc::ptr_eq(&last.0, &identity)
        {
            return Ok(Arc::clone(&last.1));
        }
        let value = make(&identity)?;
        self.last.store(Some(Arc::new((identity, Arc::clone(&value)))));
        Ok(value)
    }
}
