//! Start and stop: one set of tasks, the first to end stops the rest, and its inner error is the exit status.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Asks every task to finish what it has and end.
pub type Stop = CancellationToken;

/// How long tasks may take to finish after they are asked to stop.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// The tasks of one process.
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: Stop,
}

impl Supervisor {
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        Self { tasks: JoinSet::new(), stop }
    }

    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Runs until the first task ends or a stop is asked for, then stops the rest.
    ///
    /// # Errors
    /// What the first failed task returned; a task that ends early without being asked is a failure too.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let first = self.tasks.join_next().await;
        let was_asked = self.stop.is_cancelled();
        self.stop.cancel();
        let mut status = match first {
            None => Ok(()),
            Some(Ok((name, Ok(())))) if was_asked => {
                info!(task = name, "task {name} finished");
                Ok(())
            }
            Some(Ok((name, Ok(())))) => Err(anyhow::anyhow!("task {name} ended before it was asked to")),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("task {name} failed"))),
            Some(Err(panic)) => Err(panic).context("a task panicked"),
        };
        let rest = async {
            while let Some(ended) = self.tasks.join_next().await {
                let ended = ended.context("a task panicked").and_then(|(name, end)| end.context(name));
                status = std::mem::replace(&mut status, Ok(())).and(ended);
            }
        };
        if tokio::time::timeout(FINISH_LIMIT, rest).await.is_err() {
            warn!(limit = ?FINISH_LIMIT, "some tasks did not finish in time");
        }
        status
    }
}

/// Cancels `stop` at SIGTERM or SIGINT. Returns when it did, or when somebody else stopped first.
///
/// # Errors
/// When signals cannot be listened for.
pub async fn stop_on_signals(stop: Stop) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        () = stop.cancelled() => {}
    }
    stop.cancel();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_inner_error_of_the_first_task_is_the_status() {
        let stop = Stop::new();
        let mut supervisor = Supervisor::new(stop.clone());
        let waiting = stop.clone();
        supervisor.spawn("waits", async move {
            waiting.cancelled().await;
            Ok(())
        });
        supervisor.spawn("fails", async { Err(anyhow::anyhow!("disk on fire")) });
        let error = supervisor.run().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "task fails failed: disk on fire");
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_ends_unasked_is_a_failure() {
        let mut supervisor = Supervisor::new(Stop::new());
        supervisor.spawn("short", async { Ok(()) });
        assert!(supervisor.run().await.is_err());
    }
}
