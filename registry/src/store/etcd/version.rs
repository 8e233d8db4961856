//! Which versions of etcd are known to keep their promises.

use super::StoreError;
use super::client::Client;

/// The first good version of each line; later lines are good.
const GOOD: [(u64, u64, u64); 2] = [(3, 5, 30), (3, 6, 11)];

/// Warns of versions with known faults in leases, watches or access rules.
pub(super) async fn check(client: &Client) -> Result<(), StoreError> {
    let status = client.status().await?;
    if !is_good(&status.version) {
        tracing::warn!(
            version = status.version,
            "etcd: this version has known faults in leases and watches; use 3.5.30 or later, or 3.6.11 or later"
        );
    }
    Ok(())
}

fn is_good(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let (major, minor, patch) = (next(), next(), next());
    match GOOD.iter().find(|good| (good.0, good.1) == (major, minor)) {
        Some(good) => patch >= good.2,
        None => (major, minor) > (GOOD[1].0, GOOD[1].1),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_judged_by_their_line() {
        for (version, want) in [
            ("3.4.23", false),
            ("3.5.29", false),
            ("3.5.30", true),
            ("3.6.10", false),
            ("3.6.11", true),
            ("3.7.0", true),
            ("3.7.0-rc.1", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(super::is_good(version), want, "{version}");
        }
    }
}
