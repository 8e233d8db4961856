//! Ports for programs that must be told one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// A port that nobody has right now, over TCP or UDP, and that the system gives to no connection by
/// itself: those begin at 32768 (`net.ipv4.ip_local_port_range`). A client that happens to get its
/// server's own number talks to itself.
///
/// # Panics
///
/// If there is none.
pub fn free_port() -> u16 {
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(15_000..32_000)).take(1000);
    let any = Ipv4Addr::UNSPECIFIED;
    let is_free =
        |port: &u16| TcpListener::bind((any, *port)).is_ok() && UdpSocket::bind((any, *port)).is_ok();
    candidates.find(is_free).expect("a free port")
}

/// [`free_port`] on loopback.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}
