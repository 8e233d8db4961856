//! DNS cookies (RFC 7873, laid out as RFC 9018 says): a client that shows one has received our
//! answers before, so its source address is its own.
//!
//! The key is made at the start and never leaves the process: after a restart, and at another
//! server, a cookie counts for nothing and a new one is given.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_server::server::Request;

/// Makes and checks cookies.
pub(crate) struct Cookies {
    key: RandomState,
}

/// What a request's cookie is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// None came along.
    Nothing,
    /// Neither a client's cookie nor one with ours behind: FORMERR.
    Malformed,
    /// A client's, perhaps with one of another server or too old.
    Client([u8; CLIENT]),
    /// One that we gave to this client at this address.
    Ours([u8; CLIENT]),
}

impl Cookies {
    pub(crate) fn new() -> Self {
        Self { key: RandomState::new() }
    }

    /// What this request shows at `now`, in seconds since 1970.
    pub(crate) fn check(&self, request: &Request, now: u32) -> Shown {
        let option = request.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Cookie));
        let Some(EdnsOption::Unknown(_, bytes)) = option else { return Shown::Nothing };
        self.check_bytes(bytes, request.src().ip(), now)
    }

    pub(crate) fn check_bytes(&self, bytes: &[u8], client_ip: IpAddr, now: u32) -> Shown {
        let Some((&client, server)) = bytes.split_first_chunk::<CLIENT>() else { return Shown::Malformed };
        match server.len() {
            0 | 8..=32 => {}
            _ => return Shown::Malformed,
        }
        let Ok([VERSION, 0, 0, 0, t0, t1, t2, t3, ..]) = <&[u8; SERVER]>::try_from(server) else {
            return Shown::Client(client);
        };
        let made = u32::from_be_bytes([*t0, *t1, *t2, *t3]);
        // Serial number arithmetic (RFC 1982), as RFC 9018 wants it.
        let age = now.wrapping_sub(made).cast_signed();
        let ours = self.server_part(client, client_ip, made);
        if (-FUTURE_MAX..=AGE_MAX).contains(&age) && server == ours {
            Shown::Ours(client)
        } else {
            Shown::Client(client)
        }
    }

    /// The option for the answer, with a fresh cookie of ours.
    pub(crate) fn option(&self, client: [u8; CLIENT], client_ip: IpAddr, now: u32) -> EdnsOption {
        EdnsOption::Unknown(EdnsCode::Cookie.into(), self.whole(client, client_ip, now).to_vec())
    }

    /// The client's cookie with a fresh one of ours behind.
    pub(crate) fn whole(&self, client: [u8; CLIENT], client_ip: IpAddr, now: u32) -> [u8; WHOLE] {
        let mut whole = [0; WHOLE];
        whole[..CLIENT].copy_from_slice(&client);
        whole[CLIENT..].copy_from_slice(&self.server_part(client, client_ip, now));
        whole
    }

    fn server_part(&self, client: [u8; CLIENT], client_ip: IpAddr, made: u32) -> [u8; SERVER] {
        let mut server = [0; SERVER];
        server[0] = VERSION;
        server[4..8].copy_from_slice(&made.to_be_bytes());
        let hash = self.key.hash_one((client, made, client_ip.to_canonical()));
        server[8..].copy_from_slice(&hash.to_be_bytes());
        server
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}

pub(crate) const CLIENT: usize = 8;
const SERVER: usize = 16;
/// Bytes of a client's cookie with ours.
pub(crate) const WHOLE: usize = CLIENT + SERVER;
const VERSION: u8 = 1;
/// Seconds for which a cookie is good.
const AGE_MAX: i32 = 3600;
/// Seconds by which a clock may have been set back.
const FUTURE_MAX: i32 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_its_client_for_an_hour() {
        let (cookies, client) = (Cookies::new(), [7; CLIENT]);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let here = ip("192.0.2.1");
        let EdnsOption::Unknown(10, whole) = cookies.option(client, here, 10_000) else {
            panic!("no cookie")
        };
        let mut forged = whole.clone();
        forged[23] ^= 1;
        let (ours, stranger) = (Shown::Ours(client), Shown::Client(client));
        for (case, bytes, from, now, want) in [
            ("fresh", &whole[..], here, 10_000, ours),
            ("an hour old", &whole, here, 13_600, ours),
            ("too old", &whole, here, 13_601, stranger),
            ("clock set back", &whole, here, 9_700, ours),
            ("from the future", &whole, here, 9_699, stranger),
            ("another address", &whole, ip("192.0.2.2"), 10_000, stranger),
            ("forged", &forged, here, 10_000, stranger),
            ("the client's alone", &whole[..8], here, 10_000, stranger),
            ("another server's", &whole[..16], here, 10_000, stranger),
            ("half", &whole[..12], here, 10_000, Shown::Malformed),
            ("less than a client's", &whole[..7], here, 10_000, Shown::Malformed),
            ("too long", &[0; 41], here, 10_000, Shown::Malformed),
        ] {
            assert_eq!(cookies.check_bytes(bytes, from, now), want, "{case}");
        }
        assert_eq!(Cookies::new().check_bytes(&whole, here, 10_000), stranger, "another key");
    }
}
