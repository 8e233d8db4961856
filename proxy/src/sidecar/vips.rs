//! Opens virtual addresses, and keeps from answering one that would lead elsewhere.
//!
//! A socket on every address takes what no socket on one address takes. Where the application (or
//! another program) listens on every address, a port of a virtual address is not free to bind, and a
//! call to it would reach that program instead of the service: silently, unencrypted and without
//! policy. Such a name is not answered at all. Nor is it while the application has yet to listen on
//! the port it declared: taking it first would make the application's bind fail.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillion_model::mesh::MeshService;
use pillion_model::name::ServiceName;
use pillion_net::listen::listening_addresses;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use super::vip::Slot;
use crate::outbound::VIP_PREFIX;
use crate::runtime::Runtime;

/// Opens virtual addresses.
pub(super) struct Vips {
    runtime: Arc<Runtime>,
    /// `None`: no range was left; names have no address then.
    slot: Option<Slot>,
    /// Where the application listens, or will.
    own: Vec<SocketAddr>,
    /// What was opened, or why not.
    known: Mutex<BTreeMap<ServiceName, Known>>,
    /// Ports that could not be bound, since when and why: not tried again at once.
    failed: Mutex<BTreeMap<SocketAddr, (Instant, String)>>,
}

/// What the name of a service leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vip {
    /// This address, whose ports accept.
    Open(Ipv4Addr),
    /// No address: there is no range, or the service has no index yet.
    None,
    /// An address that must not be given out now; why has been said.
    Refused,
}

struct Known {
    address: Ipv4Addr,
    names: Vec<String>,
    problem: Option<String>,
}

/// Who listens on a port besides ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// Nobody.
    Nobody,
    /// Somebody, on certain addresses only.
    Addresses,
    /// Somebody, on every address.
    Everywhere,
}

impl Vips {
    /// None is open yet; the application listens on `own`, or will.
    pub(super) fn new(
        runtime: Arc<Runtime>,
        slot: Option<Slot>,
        own: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        Self {
            runtime,
            slot,
            own: own.into_iter().collect(),
            known: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// The index that `address` stands for; `None`: it is none of ours.
    pub(super) fn index(&self, address: IpAddr) -> Option<u16> {
        self.slot.as_ref()?.index(address)
    }

    /// The service's virtual address, with its ports accepting. What was refused is looked at again
    /// with every call.
    pub(super) fn open(&self, service: &MeshService) -> Vip {
        let Some(slot) = self.slot.as_ref().filter(|_| service.index != 0) else {
            return Vip::None; // the registry has not given it an index yet
        };
        let address = slot.address(service.index);
        let problem = self.problem(address, service);
        self.note(service, address, problem.as_deref());
        if problem.is_some() { Vip::Refused } else { Vip::Open(address) }
    }

    /// Every service opened or refused so far, for the admin page.
    pub(super) fn show(&self) -> Value {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let services = known.iter().map(|(service, known)| {
            json!({
                "service": service.to_string(),
                "names": known.names,
                "address": known.address.to_string(),
                "problem": known.problem,
            })
        });
        services.collect()
    }

    /// Opens what may be opened; gives why the address must not be given out.
    fn problem(&self, address: Ipv4Addr, service: &MeshService) -> Option<String> {
        let mut open = service.clone();
        let mut problem = None;
        open.ports.retain(|port| match self.conflict(address, port.port) {
            None => true,
            Some(conflict) => {
                problem.get_or_insert(conflict);
                false
            }
        });
        let mut failures = Vec::new();
        open.ports.retain(|port| match self.failure((address, port.port).into()) {
            None => true,
            Some(failure) => {
                failures.push(failure);
                false
            }
        });
        for rejected in self.runtime.open_vip(address.into(), &open).rejected {
            let port =
                rejected.name.strip_prefix(VIP_PREFIX).and_then(|port| port.parse::<SocketAddr>().ok());
            if let Some(port) = port {
                // Somebody may have taken it since it was looked at.
                problem = problem.or_else(|| self.conflict(address, port.port()));
                self.failed().insert(port, (Instant::now(), rejected.reason.clone()));
                failures.push(rejected.reason);
            }
        }
        let none_is_left = failures.len() >= service.ports.len();
        problem.or_else(|| {
            let first = failures.first().filter(|_| none_is_left)?;
            Some(format!("no port of {address} can be bound: {first}"))
        })
    }

    /// Why a port could not be bound a moment ago.
    fn failure(&self, port: SocketAddr) -> Option<String> {
        let mut failed = self.failed();
        failed.retain(|_, (since, _)| since.elapsed() < TRY_AGAIN);
        failed.get(&port).map(|(_, reason)| reason.clone())
    }

    fn failed(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, (Instant, String)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a port of a virtual address must be left alone.
    fn conflict(&self, address: Ipv4Addr, port: u16) -> Option<String> {
        if self.runtime.has_vip(address.into(), port) {
            return None; // ours, so nobody can take it
        }
        let is_own = self.own.iter().any(|own| own.port() == port);
        match (holder(&listening_addresses(port)), is_own) {
            (Holder::Everywhere, true) => Some(format!(
                "the application beside this sidecar listens on port {port} of every address and would get \
                 the calls itself"
            )),
            (Holder::Everywhere, false) => Some(format!(
                "another program here listens on port {port} of every address and would get the calls"
            )),
            (Holder::Nobody, true) => Some(format!(
                "the application beside this sidecar has declared port {port} and does not listen yet"
            )),
            (Holder::Addresses, _) | (Holder::Nobody, false) => None,
        }
    }

    /// Keeps what was found, and says it once.
    fn note(&self, service: &MeshService, address: Ipv4Addr, problem: Option<&str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(&service.service).and_then(|known| known.problem.as_deref());
        match (before, problem) {
            (before, Some(problem)) if before != Some(problem) => warn!(
                service = %service.service,
                "its name is not answered: {problem}; give the Service another `port`, let that program \
                 listen on 127.0.0.1 only, or call through the outbound port"
            ),
            (Some(_), None) => info!(service = %service.service, %address, "its name is answered again"),
            _ => {}
        }
        let known = known.entry(service.service.clone()).or_insert_with(|| Known {
            address,
            names: service.names.clone(),
            problem: None,
        });
        known.problem = problem.map(str::to_owned);
    }
}

/// Who has a port, by the addresses it is listened on. Virtual addresses do not count: they are
/// ours, or another sidecar's.
fn holder(addresses: &[IpAddr]) -> Holder {
    let is_virtual = |address: &IpAddr| match address {
        IpAddr::V4(address) => matches!(address.octets(), [127, 64..=127, ..]),
        IpAddr::V6(_) => false,
    };
    if addresses.iter().any(IpAddr::is_unspecified) {
        Holder::Everywhere
    } else if addresses.iter().any(|address| !is_virtual(address)) {
        Holder::Addresses
    } else {
        Holder::Nobody
    }
}

/// How long a port that cannot be bound is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_everywhere_on_some_addresses_or_by_nobody() {
        for (addresses, want) in [
            (&[][..], Holder::Nobody),
            (&["127.64.0.9", "127.99.1.1"], Holder::Nobody),
            (&["127.0.0.1"], Holder::Addresses),
            (&["::1", "127.64.0.9"], Holder::Addresses),
            (&["127.0.0.1", "0.0.0.0"], Holder::Everywhere),
            (&["::"], Holder::Everywhere),
        ] {
            let parsed: Vec<IpAddr> =
                addresses.iter().map(|address| address.parse().expect("an address")).collect();
            assert_eq!(holder(&parsed), want, "{addresses:?}");
        }
    }
}
