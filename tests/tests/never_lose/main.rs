//! A long run of requests while everything goes on that goes on in a mesh: applications that close
//! their connections, instances that come and go, configuration that changes, a registry that dies,
//! certificates that are renewed. Every request is answered once, and carried out once unless it may be
//! repeated (RFC 9110 section 9.2.2).
//!
//! 20,000 requests, unless `PILLION_TEST_REQUESTS` says another number, such as 1000000; what happens
//! when is drawn from a seed that is printed, and taken from `PILLION_TEST_SEED`.

mod client;
mod direct;
mod load;
mod mesh;
mod origin;
mod origin_http2;
mod single;

use fastrand::Rng;

use self::load::Outcome;

/// Requests of one run.
const REQUESTS: usize = 20_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: want a number")))
}

fn requests() -> usize {
    number("PILLION_TEST_REQUESTS").map_or(REQUESTS, |count| usize::try_from(count).expect("64 bits"))
}

/// What is drawn in a run; its seed is printed.
fn random() -> Rng {
    let seed = number("PILLION_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("PILLION_TEST_SEED={seed}");
    Rng::with_seed(seed)
}

fn judge(outcome: &Outcome, requests: usize) {
    println!("{outcome:#?}");
    assert!(outcome.failures.is_empty(), "requests failed: {:#?}", outcome.failures);
    assert_eq!(usize::try_from(outcome.answered).ok(), Some(requests));
}
