//! A limit on answers over UDP to one part of the Internet.
//!
//! Sources of datagrams can be forged, and answers be longer than questions: without a limit, a name
//! server is a lever against third parties. Whoever is over the limit gets TC and nothing else, no
//! longer than the question, so that a real client asks again over TCP; nobody is left without an
//! answer. Clients that show a cookie of ours are not counted: their source is no forgery.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// Counts answers by network: /24 of IPv4, /56 of IPv6.
///
/// The table has a fixed size. Networks that meet in one place share its allowance as long as either
/// is busy, so that flooding the table frees nobody.
pub(crate) struct Limiter {
    /// Time that one answer takes from the allowance, in nanoseconds.
    interval: u64,
    places: Box<[Place]>,
    hashes: RandomState,
    start: Instant,
    loopback: bool,
}

#[derive(Clone, Copy, Default)]
struct Place {
    network: u64,
    /// When the allowance is whole again, in nanoseconds since the start (the "theoretical arrival
    /// time" of GCRA).
    whole: u64,
}

impl Limiter {
    /// `rate`: answers per second to one network, as many at once. `loopback`: whether it counts, too.
    pub(crate) fn new(rate: NonZeroU32, loopback: bool, now: Instant) -> Self {
        Self {
            interval: SECOND / u64::from(rate.get()),
            places: vec![Place::default(); PLACES].into_boxed_slice(),
            hashes: RandomState::new(),
            start: now,
            loopback,
        }
    }

    /// Whether this client gets one more answer.
    pub(crate) fn admit(&mut self, client: IpAddr, now: Instant) -> bool {
        let client = client.to_canonical();
        if client.is_loopback() && !self.loopback {
            return true;
        }
        let network = self.hashes.hash_one(network(client));
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let at = usize::try_from(network % PLACES as u64).unwrap_or_default();
        let place = &mut self.places[at];
        if place.network != network && place.whole <= now {
            *place = Place { network, whole: now };
        }
        let next = place.whole.max(now) + self.interval;
        let admitted = next <= now + SECOND;
        if admitted {
            place.whole = next;
        }
        admitted
    }
}

/// The part of an address that a client cannot choose freely.
fn network(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => 1 << 63 | u64::try_from(ip.to_bits() >> 72).unwrap_or_default(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

const SECOND: u64 = 1_000_000_000;
/// 256 KiB.
const PLACES: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_network_gets_its_rate_and_no_more() {
        let start = Instant::now();
        let mut limiter = Limiter::new(NonZeroU32::new(10).expect("not 0"), false, start);
        let mut admitted = |client: &str, after_ms: u64| {
            let now = start + Duration::from_millis(after_ms);
            (0..100).filter(|_| limiter.admit(ip(client), now)).count()
        };
        for (client, after_ms, want) in [
            ("192.0.2.1", 0, 10),
            ("192.0.2.200", 0, 0), // the same network
            ("::ffff:192.0.2.1", 0, 0),
            ("192.0.3.1", 0, 10),
            ("2001:db8::1", 0, 10),
            ("2001:db8:0:1::1", 0, 0),
            ("2001:db8:0:100::1", 0, 10),
            ("127.0.0.1", 0, 100),
            ("::1", 0, 100),
            ("192.0.2.1", 99, 0),
            ("192.0.2.1", 100, 1),
            ("192.0.2.1", 1_000, 9),
            ("192.0.2.1", 60_000, 10),
        ] {
            assert_eq!(admitted(client, after_ms), want, "{client} after {after_ms} ms");
        }
    }

    #[test]
    fn flooding_the_table_frees_nobody() {
        let start = Instant::now();
        let mut limiter = Limiter::new(NonZeroU32::new(10).expect("not 0"), false, start);
        while limiter.admit(ip("192.0.2.1"), start) {}
        for at in 0..200_000_u32 {
            limiter.admit(IpAddr::from((0x0a00_0000 + (at << 8)).to_be_bytes()), start);
        }
        assert!(!limiter.admit(ip("192.0.2.1"), start));
    }
}
