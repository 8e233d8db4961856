//! Clients that only want to keep a proxy busy, or full: others are served as before, memory does not
//! grow, and who floods is closed.
//!
//! The figures are printed; what is asserted leaves room for a machine that is busy with other tests.

mod http1;
mod http2;
mod proxy;

use std::future::Future;
use std::time::Duration;

use self::proxy::{Neighbour, Proxy};

/// What an attack may cost, in KiB.
const GROWTH_MAX_KIB: u64 = 50 << 10;
/// Times below this are the machine's own, and those of a build without optimisation in a burst of requests.
const NOISE: Duration = Duration::from_millis(500);
/// How long the neighbour is looked at, without the attack and during it.
const LOOK: Duration = Duration::from_millis(1500);

/// Runs `attack` beside a neighbour, and judges what the neighbour and the proxy's memory say. What the
/// attack gives, such as open connections, is held until the neighbour has been looked at.
async fn beside<T>(name: &str, proxy: &Proxy, attack: impl Future<Output = T>) -> T {
    let quiet = neighbour(proxy).await;
    let (memory, ticks) = (proxy.memory_kib(), proxy.ticks());
    let (outcome, busy) = tokio::join!(attack, neighbour(proxy));
    let grown = proxy.memory_kib().saturating_sub(memory);
    println!(
        "{name}: p99 {quiet:?} before, {busy:?} meanwhile; {grown} KiB more; {} ms of processor time",
        (proxy.ticks() - ticks) * 10
    );
    assert!(busy <= (quiet * 2).max(NOISE), "{name}: the neighbour waits {busy:?} instead of {quiet:?}");
    assert!(grown <= GROWTH_MAX_KIB, "{name}: {grown} KiB more");
    outcome
}

/// What a neighbour sees, on a thread of its own: what attackers do here must not count.
async fn neighbour(proxy: &Proxy) -> Duration {
    let address = proxy.address;
    let look = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { Neighbour::connect(address).await.ask_for(LOOK).await.p99() })
    };
    tokio::task::spawn_blocking(look).await.expect("the neighbour is served")
}
