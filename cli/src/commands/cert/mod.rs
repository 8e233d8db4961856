//! `pillion cert`: certificates, looked at and kept fresh.

mod show;
mod watch;

use std::time::SystemTime;

/// `pillion cert`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show whom a certificate names, and how long it is good.
    Show(show::Arguments),
    /// Keep a service's certificate, key and roots fresh as PEM files, until SIGTERM or Ctrl-C.
    Watch(Box<watch::Arguments>),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Show(arguments) => show::run(arguments).await,
        Command::Watch(arguments) => watch::run(*arguments).await,
    }
}

/// What is left until `end`, in the two largest units.
pub(super) fn remaining(end: SystemTime, now: SystemTime) -> String {
    let Ok(left) = end.duration_since(now) else { return "nothing: it has expired".to_owned() };
    let minutes = left.as_secs() / 60;
    match (minutes / (24 * 60), minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_is_told_in_two_units() {
        let now = SystemTime::UNIX_EPOCH;
        for (seconds, want) in [(59, "0 min"), (3600, "1 h 0 min"), (90_061, "1 d 1 h")] {
            assert_eq!(remaining(now + Duration::from_secs(seconds), now), want);
        }
        assert!(remaining(now, now + Duration::from_secs(1)).contains("expired"));
    }
}
