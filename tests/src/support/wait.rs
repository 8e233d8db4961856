//! Waiting for a condition, with a deadline and the last state seen.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

/// How long most conditions may take; far more than they need, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, at most `deadline` long.
///
/// # Panics
///
/// At the deadline, with the last `Err`.
pub async fn eventually<T, E, F>(what: &str, deadline: Duration, mut ask: impl FnMut() -> F) -> T
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let error = match ask().await {
            Ok(value) => return value,
            Err(error) => error,
        };
        assert!(tokio::time::Instant::now() < end, "{what}: not within {deadline:?}; last: {error}");
        tokio::time::sleep(INTERVAL).await;
    }
}

/// How long a test of an outage lasts: what the environment variable says, such as `600s`, or else
/// `short`.
///
/// # Panics
///
/// If the variable says no number of seconds.
pub fn length(variable: &str, short: Duration) -> Duration {
    let Ok(text) = std::env::var(variable) else { return short };
    let seconds = text.strip_suffix('s').and_then(|digits| digits.parse().ok());
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("{variable}={text}: want such as 60s")))
}
