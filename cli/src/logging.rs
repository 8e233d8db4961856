//! Logs of the long-running commands: to stderr, as text or JSON.

use std::sync::Arc;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::commands::sidecar::{Words, value_name};

/// How a server logs.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogArguments {
    // hickory warns of every malformed message, and anybody can send one.
    /// What to log: `info`, or finer: `warn,pillion_registry=debug`.
    #[arg(long, env = "PILLION_LOG", value_name = "FILTER", default_value = "info,hickory_proto=error", value_parser = filter)]
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

/// Changes what is logged while the process runs; the error says what is wrong with the filter.
pub(crate) type SetLogFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

impl LogArguments {
    /// Passes them on to another process.
    pub(crate) fn add_to(&self, words: &mut Words) {
        words.add("--log", &self.log);
        words.add("--log-format", value_name(&self.log_format));
    }

    /// Starts logging; once per process. Gives the way to change the filter.
    pub(crate) fn start(&self) -> anyhow::Result<SetLogFilter> {
        let filter = EnvFilter::try_new(&self.log).with_context(|| format!("--log {}", self.log))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let failed = |error| anyhow::anyhow!("start logging: {error}");
        match self.log_format {
            LogFormat::Text => {
                let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
                let builder = builder.with_ansi(colours).with_filter_reloading();
                let handle = builder.reload_handle();
                builder.try_init().map_err(failed)?;
                Ok(Arc::new(move |text| change(text, |filter| handle.reload(filter))))
            }
            LogFormat::Json => {
                let builder = builder.json().with_filter_reloading();
                let handle = builder.reload_handle();
                builder.try_init().map_err(failed)?;
                Ok(Arc::new(move |text| change(text, |filter| handle.reload(filter))))
            }
        }
    }
}

/// The text of a filter that can be read.
fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn change<E: std::fmt::Display>(
    text: &str,
    reload: impl Fn(EnvFilter) -> Result<(), E>,
) -> Result<(), String> {
    let filter = EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    reload(filter).map_err(|error| error.to_string())
}
