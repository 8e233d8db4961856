//! Certificates that this process refused: counted by reason, and told in the log, a few each second.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::verify::PeerError;

/// Reasons, as metrics name them.
const REASONS: [&str; 11] = [
    "none",
    "malformed",
    "unknown-issuer",
    "expired",
    "not-yet-valid",
    "authority",
    "rule",
    "revoked",
    "uri-names",
    "trust-domain",
    "name",
];

static COUNTS: [AtomicU64; REASONS.len()] = [const { AtomicU64::new(0) }; REASONS.len()];
/// The second in which lines were written last, and how many.
static WRITTEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
const LINES_PER_SECOND: u64 = 5;

/// Certificates of peers that were refused since the start, by reason.
pub fn refused() -> impl Iterator<Item = (&'static str, u64)> {
    REASONS.iter().zip(&COUNTS).map(|(reason, count)| (*reason, count.load(Relaxed)))
}

pub(super) fn count(error: &PeerError, leaf: &CertificateDer<'_>) {
    COUNTS[place(error)].fetch_add(1, Relaxed);
    if may_write() {
        let sha256 = super::hex(&super::sha256(leaf));
        tracing::warn!(reason = REASONS[place(error)], %error, sha256, "refused a peer's certificate");
    }
}

fn place(error: &PeerError) -> usize {
    match error {
        PeerError::Empty => 0,
        PeerError::Malformed { .. } => 1,
        PeerError::UnknownIssuer => 2,
        PeerError::Expired { .. } => 3,
        PeerError::NotYetValid { .. } => 4,
        PeerError::Ca => 5,
        PeerError::Rule { .. } => 6,
        PeerError::Revoked { .. } => 7,
        PeerError::UriNames { .. } => 8,
        PeerError::NotSpiffe { .. } | PeerError::TrustDomain { .. } => 9,
        PeerError::Name { .. } | PeerError::Pin { .. } => 10,
    }
}

/// Whoever knocks again and again does not fill the disk.
fn may_write() -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let [second, lines] = &WRITTEN;
    if second.swap(now, Relaxed) != now {
        lines.store(0, Relaxed);
    }
    lines.fetch_add(1, Relaxed) < LINES_PER_SECOND
}
