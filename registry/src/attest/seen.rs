//! Proofs that were presented before, for as long as they could be good.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pillion_net::tls::sha256;

/// Remembers proofs; bounded.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<[u8; 32], SystemTime>>);

impl Seen {
    /// Notes a proof that is good for `good_for` at most.
    ///
    /// # Errors
    ///
    /// What is wrong: it was presented before, or there is no room to remember it.
    pub(super) fn note(&self, proof: &[u8], now: SystemTime, good_for: Duration) -> Result<(), &'static str> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= SEEN_MAX {
            seen.retain(|_, end| *end > now);
        }
        if seen.len() >= SEEN_MAX {
            return Err("too many proofs at a time; try again later");
        }
        match seen.insert(sha256(proof), now + good_for) {
            Some(end) if end > now => Err("it was presented before; each request needs a proof of its own"),
            _ => Ok(()),
        }
    }
}

const SEEN_MAX: usize = 100_000;
