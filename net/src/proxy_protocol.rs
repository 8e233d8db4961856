//! What a proxy in front of us says of the client, before the client's own first byte: HAProxy's
//! PROXY protocol, version 1 (a line) and version 2 (binary), for TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest line of version 1, its end included.
pub const V1_BYTES_MAX: usize = 107;
/// Longest header of version 2: 16 bytes, and as many as their last two say.
pub const V2_BYTES_MAX: usize = 16 + u16::MAX as usize;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

/// Version of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// The ends of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// What the client dialled.
    pub destination: SocketAddr,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it is written.
    pub version: Version,
    /// Its length, extensions included; they are not read.
    pub bytes: usize,
    /// `None`: those of the connection itself count.
    pub ends: Option<Ends>,
}

/// What bytes hold at their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header.
    Header(Header),
    /// Maybe a header, of this version as far as one can tell; more bytes decide.
    Partial(Option<Version>),
    /// No header.
    Absent,
    /// A header of this version that is wrong; the reason is for people.
    Wrong(Version, &'static str),
}

/// Reads a header from the beginning of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins = |signature: &[u8]| {
        let count = bytes.len().min(signature.len());
        bytes[..count] == signature[..count]
    };
    if begins(V2_SIGNATURE) {
        // Both begin with other bytes, so one byte tells them apart.
        return if bytes.is_empty() { Parsed::Partial(None) } else { v2(bytes) };
    }
    if begins(V1_SIGNATURE) { v1(bytes) } else { Parsed::Absent }
}

fn v1(bytes: &[u8]) -> Parsed {
    let searched = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= V1_BYTES_MAX {
            Parsed::Wrong(Version::V1, "a line without end")
        } else {
            Parsed::Partial(Some(Version::V1))
        };
    };
    let wrong = |reason| Parsed::Wrong(Version::V1, reason);
    let header = |ends| Parsed::Header(Header { version: Version::V1, bytes: end + 2, ends });
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return wrong("not a text") };
    let parts: Vec<&str> = line.split(' ').collect();
    let (ip, [source, destination, source_port, destination_port]): (fn(&str) -> Option<IpAddr>, _) =
        match parts[..] {
            ["PROXY", "UNKNOWN", ..] => return header(None),
            ["PROXY", "TCP4", a, b, c, d] => {
                (|text| Some(text.parse::<Ipv4Addr>().ok()?.into()), [a, b, c, d])
            }
            ["PROXY", "TCP6", a, b, c, d] => {
                (|text| Some(text.parse::<Ipv6Addr>().ok()?.into()), [a, b, c, d])
            }
            _ => return wrong("want `PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT`, or UNKNOWN"),
        };
    let end_of = |address: &str, port| Some(SocketAddr::new(ip(address)?, self::port(port)?));
    match (end_of(source, source_port), end_of(destination, destination_port)) {
        (Some(source), Some(destination)) => match unicast(source, destination) {
            Some(ends) => header(Some(ends)),
            None => wrong("an address that nobody has"),
        },
        _ => wrong("an address or a port that is none"),
    }
}

/// Digits only.
fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn v2(bytes: &[u8]) -> Parsed {
    let wrong = |reason| Parsed::Wrong(Version::V2, reason);
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED>() else {
        return Parsed::Partial(Some(Version::V2));
    };
    let (command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if command >> 4 != 2 {
        return wrong("neither version 1 nor 2");
    }
    let local = match command & 0xf {
        0 => true,
        1 => false,
        _ => return wrong("a command other than LOCAL and PROXY"),
    };
    let wanted = match family {
        _ if local => 0,
        // Envoy takes what is said of datagrams as well.
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        _ => return wrong("neither of IPv4 nor of IPv6"),
    };
    if length < wanted {
        return wrong("shorter than its addresses");
    }
    let Some(block) = rest.get(..length) else { return Parsed::Partial(Some(Version::V2)) };
    let header = |ends| Parsed::Header(Header { version: Version::V2, bytes: V2_FIXED + length, ends });
    if local {
        return header(None);
    }
    match addresses(&block[..wanted]).and_then(|(source, destination)| unicast(source, destination)) {
        Some(ends) => header(Some(ends)),
        None => wrong("an address that nobody has"),
    }
}

fn addresses(block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ips, ports) = block.split_at_checked(block.len().checked_sub(4)?)?;
    let (source, destination) = ips.split_at(ips.len() / 2);
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        match bytes.len() {
            4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
            _ => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        }
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((SocketAddr::new(ip(source)?, port(0)), SocketAddr::new(ip(destination)?, port(2))))
}

/// The ends, if both are addresses that somebody can have.
fn unicast(source: SocketAddr, destination: SocketAddr) -> Option<Ends> {
    let is_unicast = |address: SocketAddr| {
        let broadcast = address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST);
        !address.ip().is_unspecified() && !address.ip().is_multicast() && !broadcast
    };
    (is_unicast(source) && is_unicast(destination)).then_some(Ends { source, destination })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Option<Ends> {
        Some(Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    /// A header of version 2.
    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, block].concat()
    }

    fn check(bytes: &[u8], want: Option<Ends>) {
        let version = if bytes.starts_with(b"PROXY") { Version::V1 } else { Version::V2 };
        let header = Header { version, bytes: bytes.len(), ends: want };
        let followed = [bytes, b"GET / HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(parse(&followed), Parsed::Header(header), "{}", bytes.escape_ascii());
        for count in 0..bytes.len() {
            assert!(
                matches!(parse(&bytes[..count]), Parsed::Partial(_)),
                "{count} of {}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn headers_say_who_calls() {
        check(b"PROXY TCP4 192.0.2.1 198.51.100.7 1234 80\r\n", ends("192.0.2.1:1234", "198.51.100.7:80"));
        check(
            b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
            ends("[2001:db8::1]:1", "[2001:db8::2]:65535"),
        );
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN whatever it says\r\n", None);
        let v4 = [192, 0, 2, 1, 198, 51, 100, 7, 4, 210, 0, 80];
        check(&binary(0x21, 0x11, &v4), ends("192.0.2.1:1234", "198.51.100.7:80"));
        check(
            &binary(0x21, 0x11, &[&v4[..], b"\x04\0\x01x"].concat()),
            ends("192.0.2.1:1234", "198.51.100.7:80"),
        );
        let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1, 0x20, 1, 0xd, 0xb8], &[0; 11], &[2, 0, 1, 0, 2]]
            .concat();
        check(&binary(0x21, 0x21, &v6), ends("[2001:db8::1]:1", "[2001:db8::2]:2"));
        check(&binary(0x20, 0, b""), None);
        check(&binary(0x20, 0x11, b"abc"), None);
    }

    #[test]
    fn wrong_headers_are_found_out() {
        for bytes in [
            &b"PROXY TCP4 192.0.2.1 198.51.100.7 1234\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.7 1234 80 90\r\n",
            b"PROXY TCP4 192.0.2.1  198.51.100.7 1234 80\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.7 1234 80\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 +1234 80\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 80\r\n",
            b"PROXY TCP4 0.0.0.0 198.51.100.7 1 80\r\n",
            b"PROXY TCP4 224.0.0.1 198.51.100.7 1 80\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.7 1234 80\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 120], b"\r\n"].concat(),
            &binary(0x11, 0x11, &[1; 12]),
            &binary(0x22, 0x11, &[1; 12]),
            &binary(0x21, 0x11, &[1; 11]),
            &binary(0x21, 0x31, &[1; 216]),
            &binary(0x21, 0x11, &[0; 12]),
        ] {
            assert!(matches!(parse(bytes), Parsed::Wrong(..)), "{}", bytes.escape_ascii());
        }
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"proxy ", b"PROXYX", b"\r\n\r\n\0\r\nQUIX"] {
            assert_eq!(parse(bytes), Parsed::Absent, "{}", bytes.escape_ascii());
        }
    }
}
