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

/// A program could not be started; exit codes as shells have them: 127 not found, 126 not executable.
#[derive(Debug, thiserror::Error)]
#[error("start `{program}`: {reason}")]
pub(crate) struct CannotStart {
    /// What was to be started.
    pub(crate) program: String,
    /// The system's reason.
    pub(crate) reason: std::io::Error,
}

impl CannotStart {
    fn code(&self) -> u8 {
        if self.reason.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

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
    if error.is::<Usage>() {
        return ExitCode::from(2);
    }
    error.downcast_ref().map_or(ExitCode::FAILURE, |error: &CannotStart| ExitCode::from(error.code()))
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
        use std::io::ErrorKind;
        let pipe = std::io::Error::from(ErrorKind::BrokenPipe);
        let cannot_start = |kind: ErrorKind| CannotStart { program: "x".into(), reason: kind.into() };
        for (outcome, want) in [
            (Ok(()), ExitCode::SUCCESS),
            (Err(anyhow::Error::new(pipe).context("print the table")), ExitCode::SUCCESS),
            (Err(Failed.into()), ExitCode::FAILURE),
            (Err(Code(7).into()), ExitCode::from(7)),
            (Err(Usage("no".into()).into()), ExitCode::from(2)),
            (Err(anyhow::Error::from(Usage("no".into())).context("at")), ExitCode::from(2)),
            (Err(cannot_start(ErrorKind::NotFound).into()), ExitCode::from(127)),
            (Err(cannot_start(ErrorKind::PermissionDenied).into()), ExitCode::from(126)),
            (Err(anyhow::anyhow!("other")), ExitCode::FAILURE),
        ] {
            let text = format!("{outcome:?}");
            assert_eq!(format!("{:?}", code(outcome)), format!("{want:?}"), "{text}");
        }
    }
}
