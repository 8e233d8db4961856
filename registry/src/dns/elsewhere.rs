//! Names that are not ours, where other resolvers are to be asked for them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pillion_dns::forward::Forwarder;
use pillion_dns::{Question, Reply};

/// Other resolvers, for clients nearby.
///
/// A server that recurses for everybody is a lever against third parties, whose addresses questions can
/// be given; so only clients at private addresses are served, as resolvers do by default.
pub(super) struct Elsewhere {
    forwarder: Forwarder,
    forwarded: Arc<AtomicU64>,
}

impl Elsewhere {
    /// Asks these resolvers; `None` where there are none.
    pub(super) fn new(forwarder: Forwarder) -> Option<Self> {
        (!forwarder.resolvers().is_empty()).then(|| Self { forwarder, forwarded: Arc::default() })
    }

    /// Passes the question on once the reply is waited for; `None` where this client is not served, or did not ask for it (RD).
    pub(super) fn ask(&self, question: &Question<'_>) -> Option<Reply> {
        if !question.recursion_desired() || !is_private(question.client.ip()) {
            return None;
        }
        let Reply::Later(answer) = self.forwarder.forward(question) else { return None };
        let forwarded = Arc::clone(&self.forwarded);
        Some(Reply::Later(Box::pin(async move {
            forwarded.fetch_add(1, Ordering::Relaxed);
            answer.await
        })))
    }

    /// Questions passed on since the start.
    pub(super) fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }
}

/// Loopback, link-local, and what RFC 1918, RFC 4193 and RFC 6598 set aside.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && (64..128).contains(&second);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_nearby_are_those_of_private_networks() {
        for (address, near) in [
            ("127.0.0.1", true),
            ("10.1.2.3", true),
            ("172.16.0.1", true),
            ("172.32.0.1", false),
            ("192.168.1.1", true),
            ("169.254.1.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("8.8.8.8", false),
            ("::1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:8.8.8.8", false),
        ] {
            assert_eq!(is_private(address.parse().expect("an address")), near, "{address}");
        }
    }
}
