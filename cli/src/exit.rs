//! From the outcome of a command to the process's exit code.

use std::io::Write;
use std::process::ExitCode;

/// The command was called in a way that cannot work; exit code 2, as for clap's own errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// The command did its work and the answer is no (files differ, rows failed): it has said so
/// itself, so nothing more is printed. Exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub(crate) struct Failed;

/// A child ran and its exit code is ours.
#[derive(Debug, thiserror::Error)]
#[error("exit code {0}")]
pub(crate) struct Code(pub(crate) u8);

/// Prints the error, if there is one to print, and tells the exit code.
pub(crate) fn code(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS; // the reader has seen enough, as with `| head`
    }
    if error.is::<Failed>() {
        return ExitCode::FAILURE;
    }
    if let Some(Code(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    // Nothing to do about an error that cannot be shown.
    let _ = writeln!(anstream::stderr().lock(), "{}error:{:#} {error:#}", BAD, BAD);
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// How what is wrong is shown.
pub(crate) const BAD: anstyle::Style =
    anstyle::Style::new().bold().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Red)));
/// How what is right is shown.
pub(crate) const GOOD: anstyle::Style =
    anstyle::Style::new().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Green)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_success_and_wrong_usage_is_2() {
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        for (outcome, want) in [
            (Ok(()), ExitCode::SUCCESS),
            (Err(anyhow::Error::new(pipe).context("print the table")), ExitCode::SUCCESS),
            (Err(Failed.into()), ExitCode::FAILURE),
            (Err(Code(7).into()), ExitCode::from(7)),
            (Err(Usage("no".into()).into()), ExitCode::from(2)),
            (Err(anyhow::anyhow!("other")), ExitCode::FAILURE),
        ] {
            let text = format!("{outcome:?}");
            assert_eq!(format!("{:?}", code(outcome)), format!("{want:?}"), "{text}");
        }
    }
}
