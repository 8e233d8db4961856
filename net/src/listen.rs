//! Binds sockets, with errors that say who has the port and what to do about it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Whether other sockets of ours share the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The first one: fails when anybody has the port, even another process that shares it; further
    /// sockets of ours may [`Reuse::Join`].
    Exclusive,
    /// A further one beside an exclusive one: the kernel spreads connections over them.
    Join,
}

/// A socket that could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// What was to listen, such as `inbound listener`.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// The flag by which users choose another address.
    pub flag: Option<String>,
    /// The process that has the port, where `/proc` tells.
    pub holder: Option<String>,
    /// The system's error.
    pub source: io::Error,
}

impl BindError {
    /// Names the flag by which users choose another address, for the message.
    #[must_use]
    pub fn with_flag(mut self, flag: &str) -> Self {
        self.flag = Some(flag.to_owned());
        self
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address, flag, holder, source } = self;
        let other = |f: &mut fmt::Formatter<'_>| match flag {
            Some(flag) => write!(f, " choose another address with {flag}"),
            None => write!(f, " choose another address"),
        };
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "{name}: {address} is taken")?;
                match holder {
                    Some(holder) => write!(f, " by {holder}; stop it or")?,
                    None => write!(f, "; stop what listens there or")?,
                }
                other(f)
            }
            io::ErrorKind::AddrNotAvailable => {
                write!(f, "{name}: {} is not an address of this machine;", address.ip())?;
                other(f)
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "{name}: not allowed to bind {address}; grant CAP_NET_BIND_SERVICE or")?;
                other(f)
            }
            _ => write!(f, "{name}: cannot bind {address}: {source}"),
        }
    }
}

/// The message holds the system's error already.
impl std::error::Error for BindError {}

/// Binds a listening TCP socket, ready for tokio (non-blocking). Port 0 picks a free one: ask the
/// socket which.
///
/// # Errors
///
/// [`BindError`] says what was to listen where, who is there, and what to do.
pub fn bind_tcp(name: &str, address: SocketAddr, reuse: Reuse) -> Result<TcpListener, BindError> {
    open_tcp(address, reuse).map_err(|source| failure(name, address, source, &["tcp", "tcp6"]))
}

/// Binds a UDP socket, ready for tokio (non-blocking).
///
/// # Errors
///
/// As [`bind_tcp`].
pub fn bind_udp(name: &str, address: SocketAddr, reuse: Reuse) -> Result<UdpSocket, BindError> {
    open_udp(address, reuse).map_err(|source| failure(name, address, source, &["udp", "udp6"]))
}

/// Binds a UDP and a TCP socket to the same address, as DNS wants it. Port 0 picks a port that is free
/// for both.
///
/// # Errors
///
/// As [`bind_tcp`].
pub fn bind_udp_and_tcp(name: &str, address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let mut tries = PAIR_TRIES;
    loop {
        let udp = bind_udp(name, address, Reuse::Exclusive)?;
        let bound = udp.local_addr().map_err(|source| failure(name, address, source, &[]))?;
        tries -= 1;
        match bind_tcp(name, bound, Reuse::Exclusive) {
            Ok(tcp) => return Ok((udp, tcp)),
            // The port picked for UDP is another's for TCP: pick again.
            Err(error) if address.port() != 0 || tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

/// The local address from which `target` is reached. Sends nothing.
///
/// # Errors
///
/// The system's, such as no route.
pub fn source_address(target: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

/// Waits after a failed `accept`: not at all for a peer that went away, a moment when the process is
/// out of descriptors or memory, so that accepting does not spin.
pub async fn pause_accept(error: &io::Error) {
    use io::ErrorKind as K;
    if matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::Interrupted) {
        return;
    }
    tracing::warn!(%error, "cannot accept a connection, waiting");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn open_tcp(address: SocketAddr, reuse: Reuse) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // takes a port whose last connections are in TIME_WAIT
    bind(&socket, address, reuse)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn open_udp(address: SocketAddr, reuse: Reuse) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    bind(&socket, address, reuse)?;
    Ok(socket.into())
}

fn bind(socket: &Socket, address: SocketAddr, reuse: Reuse) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if reuse == Reuse::Join {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    // Set after binding, so that binding fails when somebody shares the port already.
    socket.set_reuse_port(true)
}

fn failure(name: &str, address: SocketAddr, source: io::Error, tables: &[&str]) -> BindError {
    let taken = source.kind() == io::ErrorKind::AddrInUse;
    let holder = if taken { holder(address.port(), tables) } else { None };
    BindError { name: name.to_owned(), address, flag: None, holder, source }
}

/// The process that listens on `port`, as far as `/proc` shows it to us: `nginx (pid 12)`.
fn holder(port: u16, tables: &[&str]) -> Option<String> {
    let inodes: Vec<String> = tables
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|text| listening_inodes(&text, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue; // `self` and what are no processes
        }
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = files.flatten().any(|file| {
            std::fs::read_link(file.path())
                .is_ok_and(|to| inodes.iter().any(|inode| to.as_os_str() == &inode[..]))
        });
        if holds {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {})", command.trim(), process.file_name().display()));
        }
    }
    None
}

/// The addresses of this network namespace on whose TCP `port` somebody listens, as far as `/proc`
/// tells. The cost grows with the number of sockets.
pub fn listening_addresses(port: u16) -> Vec<IpAddr> {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|text| listening_in(&text, port))
        .collect()
}

/// Local addresses of the rows of a `/proc/net` table that listen on `port`.
fn listening_in(table: &str, port: u16) -> Vec<IpAddr> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (address, local_port) = fields.next()?.split_once(':')?;
            let here = fields.nth(1)? == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
            here.then(|| kernel_address(address)).flatten()
        })
        .collect()
}

/// An address as the kernel prints it: words of 32 bits in network order, read as native numbers.
fn kernel_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            Some(IpAddr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// The state of a listening TCP socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Inodes of the sockets in a `/proc/net` table that listen on (TCP) or are bound to (UDP) `port`.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const UNCONNECTED: &str = "07";
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            let here = local.ends_with(&suffix) && (*state == LISTEN || *state == UNCONNECTED);
            here.then(|| (*inode).to_owned())
        })
        .collect()
}

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
const PAIR_TRIES: u32 = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[test]
    fn a_taken_port_is_reported_with_holder_and_remedy() {
        let first = bind_tcp("inbound listener", loopback(), Reuse::Exclusive).expect("a free port");
        let address = first.local_addr().expect("bound");
        let error = bind_tcp("inbound listener", address, Reuse::Exclusive)
            .expect_err("taken")
            .with_flag("--inbound")
            .to_string();
        let pid = std::process::id();
        assert!(error.starts_with(&format!("inbound listener: {address} is taken by ")), "{error}");
        assert!(error.contains(&format!("(pid {pid})")), "{error}");
        assert!(error.ends_with("; stop it or choose another address with --inbound"), "{error}");
    }

    #[test]
    fn further_workers_join_and_strangers_do_not() {
        let first = bind_tcp("inbound listener", loopback(), Reuse::Exclusive).expect("a free port");
        let address = first.local_addr().expect("bound");
        let second = bind_tcp("inbound listener", address, Reuse::Join).expect("joins");
        assert_eq!(second.local_addr().expect("bound"), address);
        bind_tcp("another", address, Reuse::Exclusive).expect_err("still exclusive");
        let udp = bind_udp("dns", loopback(), Reuse::Exclusive).expect("a free port");
        let address = udp.local_addr().expect("bound");
        bind_udp("dns", address, Reuse::Join).expect("joins");
        bind_udp("dns", address, Reuse::Exclusive).expect_err("still exclusive");
    }

    #[test]
    fn udp_and_tcp_share_a_port_or_the_taken_one_is_reported() {
        let (udp, tcp) = bind_udp_and_tcp("dns", loopback()).expect("a port");
        let address = udp.local_addr().expect("bound");
        assert_eq!(address, tcp.local_addr().expect("bound"));
        drop(udp);
        let error = bind_udp_and_tcp("dns", address).expect_err("TCP is taken").to_string();
        assert!(error.starts_with(&format!("dns: {address} is taken by ")), "{error}");
    }

    #[test]
    fn who_listens_where_is_seen() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = std::net::TcpListener::bind(address).expect(address);
            let bound = listener.local_addr().expect("bound");
            let _connected = std::net::TcpStream::connect(bound).expect("accepted by the kernel");
            assert_eq!(listening_addresses(bound.port()), [bound.ip()], "{address}");
        }
        let free =
            bind_tcp("any", loopback(), Reuse::Exclusive).expect("a port").local_addr().expect("bound");
        assert_eq!(listening_addresses(free.port()), Vec::<IpAddr>::new());
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let error = bind_tcp("api", ([192, 0, 2, 1], 0).into(), Reuse::Exclusive).expect_err("not ours");
        assert_eq!(
            error.with_flag("--api").to_string(),
            "api: 192.0.2.1 is not an address of this machine; choose another address with --api"
        );
    }

    #[test]
    fn loopback_is_reached_from_loopback() {
        let source = source_address(([127, 0, 0, 1], 7071).into()).expect("a route");
        assert!(source.is_loopback(), "{source}");
    }
}
