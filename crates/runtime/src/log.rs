//! Structured logs on standard error.

use std::sync::OnceLock;

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

type PutFilter = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;

/// Changes the filter of what was started first.
static PUT_FILTER: OnceLock<PutFilter> = OnceLock::new();

/// Logs by another filter from now on.
///
/// # Errors
/// When the filter is not one; the one before holds then.
pub fn change_filter(filter: &str) -> anyhow::Result<()> {
    let filter = parsed_filter(filter)?;
    PUT_FILTER.get().map_or(Ok(()), |put| put(filter))
}

/// Starts logging; `filter` is a tracing filter such as `info` or `bulkhead=debug`.
///
/// # Errors
/// When the filter is not one.
pub fn init_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = parsed_filter(filter)?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let (is_first, put): (bool, PutFilter) = match format {
        LogFormat::Text => {
            let logs = logs.with_filter_reloading();
            let handle = logs.reload_handle();
            (logs.try_init().is_ok(), Box::new(move |filter| Ok(handle.reload(filter)?)))
        }
        LogFormat::Json => {
            let logs = logs.json().flatten_event(true).with_filter_reloading();
            let handle = logs.reload_handle();
            (logs.try_init().is_ok(), Box::new(move |filter| Ok(handle.reload(filter)?)))
        }
    };
    if is_first {
        let _ = PUT_FILTER.set(put);
    }
    Ok(())
}
