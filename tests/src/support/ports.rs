//! Ports for programs that must be told one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::sync::{Mutex, PoisonError};

/// What this process was given, as long as it lives.
static GIVEN: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());

/// A port that nobody has right now, over TCP or UDP, that no test on this machine is given again
/// before this process has ended, and that the system gives to no connection by itself: those begin
/// at 32768 (`net.ipv4.ip_local_port_range`). A client that happens to get its server's own number
/// talks to itself.
///
/// # Panics
///
/// If there is none.
pub fn free_port() -> u16 {
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(15_000..32_000)).take(1000);
    let any = Ipv4Addr::UNSPECIFIED;
    let is_free =
        |port: &u16| TcpListener::bind((any, *port)).is_ok() && UdpSocket::bind((any, *port)).is_ok();
    candidates.find(|port| reserve(*port) && is_free(port)).expect("a free port")
}

/// Takes the port for this process, by a name in the abstract namespace; false: another has it.
fn reserve(port: u16) -> bool {
    let name = UnixAddress::from_abstract_name(format!("pillion-tests-port-{port}"));
    let Ok(held) = name.and_then(|name| UnixDatagram::bind_addr(&name)) else { return false };
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    true
}

/// [`free_port`] on loopback.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut given: Vec<_> = std::iter::repeat_with(free_port).take(500).collect();
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 500);
    }
}
