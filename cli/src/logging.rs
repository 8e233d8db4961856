//! Logs of the long-running commands: to stderr, as text or JSON.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// How a server logs.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogArguments {
    /// What to log: `info`, or finer: `warn,pillion_registry=debug`.
    #[arg(long, env = "PILLION_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// How a line of log looks.
    #[arg(long, env = "PILLION_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogArguments {
    /// Starts logging; once per process.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log).with_context(|| format!("--log {}", self.log))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let started = match self.log_format {
            LogFormat::Text => {
                builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
            }
            LogFormat::Json => builder.json().try_init(),
        };
        started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
    }
}
