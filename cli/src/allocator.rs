//! The allocator of all memory, and what it gives back.

use std::convert::Infallible;
use std::time::Duration;

use rustix::thread::disable_transparent_huge_pages;
use tokio::time::{MissedTickBehavior, interval};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Declines pages of 2 MiB: most buffers are used at their beginning only, and such a page is cleared, and
/// counts, whole (with them a stream of the registry takes 54 KiB instead of 39). Kernels without say no.
pub(crate) fn decline_huge_pages() {
    if let Err(error) = disable_transparent_huge_pages(true) {
        tracing::debug!("huge pages cannot be declined: {error}");
    }
}

/// Gives memory that nothing uses back to the system, now and then. By itself the allocator does so only
/// while there is work, and keeps what a start or a burst needed.
pub(crate) async fn give_back() -> Infallible {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        collect();
    }
}

#[expect(unsafe_code, reason = "the allocator's own function; it may be called at any time by any thread")]
fn collect() {
    // SAFETY: takes no pointers and returns none; what is in use stays.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

const EVERY: Duration = Duration::from_secs(10);
