//! Structured logs on standard error.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

fn parsed_filter(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter).map_err(|error| anyhow::anyhow!("log_filter {filter:?} is not a filter: {error}"))
}

/// Whether `filter` is one, for checking settings without starting anything.
///
/// # Errors
/// When it is not; the message names it.
pub fn check_filter(filter: &str) -> anyhow::Result<()> {
    parsed_filter(filter).map(|_| ())
}

/// Starts logging; `filter` is a tracing filter such as `info` or `bulkhead=debug`.
///
/// # Errors
/// When the filter is not one.
pub fn init_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = parsed_filter(filter)?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    Ok(())
}
