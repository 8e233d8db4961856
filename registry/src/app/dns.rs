//! DNS on one port, UDP and TCP, over the catalog.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use pillion_dns::forward::Forwarder;
use pillion_net::listen::{Reuse, bind_udp};
use pillion_net::resolve::Target;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{StartError, address, listen};
use crate::catalog::Catalog;
use crate::dns::RegistryZone;

/// Times a free port is looked for that is free for both UDP and TCP.
const TRIES: usize = 16;

/// The same port twice.
pub(super) struct Sockets {
    pub(super) tcp: TcpListener,
    udp: UdpSocket,
}

pub(super) fn bind(at: SocketAddr) -> Result<Sockets, StartError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let tcp = listen("DNS (TCP)", at, "--dns")?;
        match bind_udp("DNS (UDP)", address(&tcp)?, Reuse::Exclusive) {
            Ok(udp) => {
                let failed = |source| StartError::Io { what: "use the socket of DNS".to_owned(), source };
                return Ok(Sockets { tcp, udp: UdpSocket::from_std(udp).map_err(failed)? });
            }
            // The free port found for TCP is somebody's for UDP: look for another.
            Err(_) if at.port() == 0 && tries < TRIES => {}
            Err(error) => return Err(error.with_flag("--dns").into()),
        }
    }
}

/// A forwarder to these resolvers, unless one of them is this very server at `at`, which would ask itself
/// without end.
pub(super) fn forwarder(resolvers: &[SocketAddr], at: SocketAddr) -> Result<Forwarder, StartError> {
    let here = |ip: IpAddr| std::net::UdpSocket::bind((ip, 0)).is_ok(); // an address of this machine
    let ourselves = |to: &&SocketAddr| {
        to.port() == at.port() && (to.ip() == at.ip() || at.ip().is_unspecified() && here(to.ip()))
    };
    match resolvers.iter().find(ourselves) {
        Some(to) => Err(StartError::ForwardToItself(*to)),
        None => Ok(Forwarder::new(resolvers.to_vec())),
    }
}

/// The zone over the catalog, once there is one; this name server is where the registry is.
pub(super) fn zone(
    catalog: Arc<OnceLock<Arc<Catalog>>>,
    advertised: &[Target],
    forwarder: Forwarder,
) -> Arc<RegistryZone> {
    let mut addresses: Vec<IpAddr> =
        advertised.iter().filter_map(|target| target.host.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let store = Arc::clone(&catalog);
    let away = move || store.get().is_some_and(|catalog| catalog.store().trouble().is_some());
    let current = move || Some(catalog.get()?.world());
    Arc::new(RegistryZone::new(Box::new(current), Box::new(away), addresses, forwarder))
}

pub(super) async fn serve(
    sockets: Sockets,
    zone: Arc<RegistryZone>,
    limit: super::DnsLimit,
    stop: CancellationToken,
) {
    let options = pillion_dns::Options {
        answers_per_second: limit.answers_per_second,
        limit_loopback: limit.loopback,
        stats: Arc::clone(zone.stats()),
        ..pillion_dns::Options::default()
    };
    pillion_dns::serve_with("registry DNS", sockets.udp, sockets.tcp, zone, options, stop).await;
}
