//! The life of a service from its start to its end: signals, the health page, and what it serves.

use std::future::Future;
use std::net::SocketAddr;

use tracing::info;

use crate::health::{Health, serve_health};
use crate::life::{Stop, Supervisor, stop_on_signals};

/// Runs what `start` has started until `stop` or a signal. A stop that comes while it still waits for something is a stop and
/// no failure.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run_service(
    name: &'static str,
    health_listen: Option<SocketAddr>,
    health: Health,
    stop: Stop,
    start: impl Future<Output = anyhow::Result<Supervisor>> + Send + 'static,
) -> anyhow::Result<()> {
    let page = health.page.clone();
    let mut supervisor = Supervisor::new(stop.clone());
    supervisor.spawn("signals", stop_on_signals(stop.clone()));
    if let Some(listen) = health_listen {
        supervisor.spawn("health", serve_health(listen, health, stop.clone()));
    }
    supervisor.spawn(name, async move {
        match start.await {
            Ok(tasks) => tasks.run().await,
            Err(_) if stop.is_cancelled() => Ok(()),
            Err(error) => Err(error),
        }
    });
    let ended = supervisor.run().await;
    info!(counters = page.counters(), "{name} stopped");
    ended
}
