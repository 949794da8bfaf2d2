//! Reaches what a service needs: waits for it for a limited time, fails at once with what waiting cannot cure, and shows
//! which of its connections are up.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::info;

use crate::bus::{Bus, BusSettings, ConnectError};
use crate::chain::Chain;
use crate::life::Stop;
use crate::metrics::{Gauge, Page};
use crate::wait::Backoff;

/// How long a start waits for the hub and the database before it fails and is started again.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Tries until `attempt` gives a value.
///
/// # Errors
/// What the last attempt failed with, when that is final or waiting has taken too long; or that `stop` came first.
pub async fn keep_trying<T, E, F>(
    what: &'static str,
    stop: &Stop,
    is_final: fn(&E) -> bool,
    attempt: impl Fn() -> F,
) -> anyhow::Result<T>
where
    E: Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + START_LIMIT;
    let mut pace = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut last = String::new();
    loop {
        let tried = tokio::select! {
            tried = attempt() => tried,
            () = stop.cancelled() => anyhow::bail!("{what}: stopped before it was there"),
        };
        let error = match tried {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if is_final(&error) || Instant::now() >= end {
            return Err(error).context(what);
        }
        let cause = Chain(&error).to_string();
        if cause != last {
            info!(cause, "waiting: {what}");
            last = cause;
        }
        tokio::select! {
            () = pace.pause() => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Connects to the hub, and waits for it.
///
/// # Errors
/// As [`keep_trying`].
pub async fn reach_hub(settings: &BusSettings, name: &'static str, stop: &Stop) -> anyhow::Result<Bus> {
    let is_final = |error: &ConnectError| match error {
        ConnectError::Address(_) | ConnectError::NoAddress | ConnectError::Tls(_) | ConnectError::Credentials(_) => {
            true
        }
        ConnectError::Connect { .. } => false,
    };
    keep_trying("connect to the hub", stop, is_final, || Bus::connect(settings, name)).await.context(name)
}

/// Shows how many of these connections are up whenever the page is rendered.
pub fn show_hub(page: &Page, gauge: Gauge, buses: impl Fn() -> Vec<Bus> + Send + Sync + 'static) {
    page.before_rendering(move || {
        let up = buses().iter().filter(|bus| bus.is_connected()).count();
        gauge.set(i64::try_from(up).unwrap_or(i64::MAX));
    });
}
