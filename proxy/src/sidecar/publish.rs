//! Brings configuration and identity into effect.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use pillion_model::http::AccessLog;
use pillion_model::listener::{Direction, Listener, Terminal};
use pillion_model::mesh::{EGRESS_ROUTES, INBOUND_LISTENER, Resources};
use pillion_net::identity::IdentityWatch;
use pillion_net::readiness::ReadyGuard;
use pillion_net::tls::Secrets;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::hosts::Hosts;
use super::names::Names;
use super::upstreams::Upstreams;
use super::vips::Vip;
use crate::control::Control;
use crate::runtime::Runtime;

/// What every publication needs.
pub(super) struct Publish {
    pub(super) runtime: Arc<Runtime>,
    pub(super) names: Arc<Names>,
    pub(super) upstreams: Upstreams,
    pub(super) hosts: Option<Hosts>,
    pub(super) inbound: SocketAddr,
    /// Names of services that a start waits for a moment: the application may call them at once.
    pub(super) awaited: Vec<String>,
    /// The application has ports, so there is an inbound side.
    pub(super) is_called: bool,
    pub(super) access_logs: Vec<AccessLog>,
    /// The inbound side takes nothing any more.
    pub(super) closed: Arc<AtomicBool>,
    /// Publish again, although nothing came.
    pub(super) again: Arc<Notify>,
}

impl Publish {
    /// Publishes whatever comes, until `stop`.
    pub(super) async fn run(
        self,
        control: Control,
        mut identity: IdentityWatch,
        first_configuration: ReadyGuard,
        stop: CancellationToken,
    ) {
        let mut resources = control.resources();
        let mut first_configuration = Some(first_configuration);
        let mut waits_until = None;
        let mut secrets: Option<Arc<dyn Secrets>> = identity.current().map(|identity| identity as _);
        loop {
            let next = Resources::clone(&resources.borrow_and_update());
            if let Some(secrets) = &secrets {
                let complete = if self.is_called {
                    next.listeners.contains_key(INBOUND_LISTENER)
                } else {
                    next.routes.contains_key(EGRESS_ROUTES)
                };
                let known = self.awaited.iter().all(|name| next.services.contains_key(name));
                self.publish(next, secrets);
                if complete {
                    let until = *waits_until.get_or_insert_with(|| Instant::now() + AWAITED_MAX);
                    if known || until <= Instant::now() {
                        first_configuration.take();
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.again.notified() => {}
                () = sleep_until(waits_until.unwrap_or_else(Instant::now)),
                    if waits_until.is_some() && first_configuration.is_some() => {}
                changed = resources.changed() => if changed.is_err() { return },
                changed = identity.changed() => {
                    secrets = changed.map(|identity| identity as Arc<dyn Secrets>).or(secrets);
                }
            }
        }
    }

    fn publish(&self, mut resources: Resources, secrets: &Arc<dyn Secrets>) {
        let listener = resources.listeners.remove(INBOUND_LISTENER);
        if !self.closed.load(Relaxed) {
            // The socket is ours: what the registry knows of its address may be mapped or old.
            let mut listener = listener.unwrap_or_else(|| closed_listener(self.inbound));
            listener.address = Some(self.inbound);
            self.add_access_logs(&mut listener);
            resources.listeners.insert(INBOUND_LISTENER.to_owned(), listener);
        }
        let services: BTreeMap<_, _> =
            resources.services.values().map(|service| (service.service.clone(), service.clone())).collect();
        for rejected in self.runtime.publish(resources, secrets).rejected {
            warn!(
                kind = rejected.kind,
                name = rejected.name,
                reason = rejected.reason,
                "not brought into effect"
            );
        }
        // After a restart, and when a service gains a port, its addresses must accept at once.
        let mut hosts = BTreeMap::new();
        for service in services.values() {
            if let Vip::Open(address) = self.names.vips.open(service) {
                hosts.extend(service.names.iter().map(|name| (name.as_str(), address)));
            }
        }
        self.upstreams.follow(&services);
        if let Some(file) = &self.hosts {
            file.keep(&hosts);
        }
    }

    fn add_access_logs(&self, listener: &mut Listener) {
        for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
            match &mut chain.terminal {
                Terminal::Http(manager) => manager.access_logs.extend(self.access_logs.iter().cloned()),
                Terminal::Tcp(tcp) => tcp.access_logs.extend(self.access_logs.iter().cloned()),
            }
        }
    }
}

/// A listener that closes every connection.
pub(super) fn closed_listener(address: SocketAddr) -> Listener {
    Listener {
        name: INBOUND_LISTENER.to_owned(),
        address: Some(address),
        direction: Direction::Inbound,
        proxy_protocol: None,
        tls_inspector: false,
        original_dst: false,
        listener_filters_timeout: Duration::from_secs(15),
        filter_chains: Vec::new(),
        default_filter_chain: None,
        access_logs: Vec::new(),
        api_listener: None,
    }
}

/// How long a start waits for services that it was told of.
const AWAITED_MAX: Duration = Duration::from_secs(1);
