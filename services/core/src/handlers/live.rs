//! `t.<T>.live.<site>.<poller>.<kind>`: display only, from one INTAKE account.

use std::sync::Arc;

use anyhow::Context;
use bulkhead_bus::payload::{BATCH_VERSION, LiveResults, RESULTS_PER_BATCH_MAX};
use bulkhead_bus::{Audience, CoreSubject, Role, TenantSubject, role_permissions};
use bulkhead_directory::Directory;
use bulkhead_runtime::{Bus, Heart, Message, Readiness, Stop, now_ms};
use tracing::debug;

use crate::live_view::LiveView;
use crate::metrics::{Metrics, add};

/// What a live reader works with.
#[derive(Clone)]
pub struct LiveReader {
    pub directory: Directory,
    pub view: LiveView,
    pub metrics: Arc<Metrics>,
}

impl LiveReader {
    /// Listens until `stop`.
    ///
    /// # Errors
    /// When the subscription cannot be made at the start.
    pub async fn run(self, bus: Bus, readiness: Readiness, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let patterns = role_permissions(Role::CoreLive).subscribe;
        let pattern = patterns.first().context("the subject table has a live row")?;
        let mut messages = bus.listen(pattern).await.context("listen for live streams")?;
        bus.flush().await.context("subscribe to live streams")?;
        readiness.mark("live");
        loop {
            let message = tokio::select! {
                message = heart.while_waiting(messages.next()) => message,
                () = stop.cancelled() => return Ok(()),
            };
            self.show(&message);
        }
    }

    fn show(&self, message: &Message) {
        match self.shown(message) {
            Ok(dropped) => {
                add(&self.metrics.live_received, 1);
                add(&self.metrics.live_dropped, u64::try_from(dropped).unwrap_or(0));
            }
            Err(problem) => {
                add(&self.metrics.live_dropped, 1);
                // Nobody promised that live messages arrive; the durable way records what is wrong with them.
                debug!(subject = %message.subject, "live message dropped: {problem}");
            }
        }
    }

    fn shown(&self, message: &Message) -> Result<usize, String> {
        let subject: CoreSubject = message.subject.parse().map_err(|error| format!("{error}"))?;
        let body: LiveResults = serde_json::from_slice(&message.body).map_err(|error| error.to_string())?;
        if body.version != BATCH_VERSION || body.results.len() > RESULTS_PER_BATCH_MAX {
            return Err(format!("version {} with {} results", body.version, body.results.len()));
        }
        let guarded = self.directory.snapshot().admit(subject, Audience::Tenants, body);
        let guarded = guarded.map_err(|refusal| refusal.to_string())?;
        let (Some(tenant), TenantSubject::Live { site, poller, .. }) = (guarded.tenant(), guarded.subject()) else {
            return Err("not a live subject".to_owned());
        };
        Ok(self.view.show(tenant, (site, poller), guarded.body().results.clone(), now_ms()))
    }
}
