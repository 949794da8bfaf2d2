//! Another number of hub servers: core stores all that the hub holds, and then the hub's streams are made anew.
//!
//! Streams are not carried over. To a cluster, the streams of a server that stood alone are orphans, and it deletes them
//! half a minute later with all that leaves were told is safe; one server of three has no majority to change anything
//! (measured: docs/measurements.md, hub-of-three).

use std::time::Duration;

use bulkhead_runtime::eventually;

use super::backbone::Base;
use super::deployment::DeploymentError;
use super::home::remove;
use super::hub::{known_size, remember_size};
use super::start::Starter;
use crate::hub_size::HubSize;
use crate::hub_state::wait_until_whole;

/// How long core may take to store what the hub holds. The streams have quotas, so it is never much.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);
const WHOLE_LIMIT: Duration = Duration::from_secs(60);

impl Starter<'_> {
    /// The number of servers to start: what is asked for, or what this home has. Changes it where these differ.
    pub(super) async fn settle_size(&mut self, base: &Base) -> Result<HubSize, DeploymentError> {
        let known = known_size(self.layout)?;
        let wanted = self.options.hub_servers.or(known).unwrap_or_default();
        if let Some(from) = known.filter(|&from| from != wanted) {
            self.drain(base, from).await?;
            self.forget_streams(from)?;
        }
        remember_size(self.layout, wanted)?;
        Ok(wanted)
    }

    /// Runs the hub as it was, with core and without any leaf, until nothing is left in its streams.
    async fn drain(&mut self, base: &Base, from: HubSize) -> Result<(), DeploymentError> {
        (self.announce)("another number of hub servers: first core stores what the hub holds");
        // In a place of its own: it is large, and whoever waits for it starts another one afterwards.
        let backbone = Box::pin(self.start_backbone(base, from)).await?;
        let system = &backbone.system;
        let drained = eventually("core storing all that the hub holds", DRAIN_LIMIT, || async {
            // Of every server, and each with everything: one that is behind may hold less than there is.
            let states = wait_until_whole(system, from, WHOLE_LIMIT).await.map_err(|error| error.to_string())?;
            let left = states.iter().map(|state| state.messages).max().unwrap_or(0);
            if left == 0 { Ok(()) } else { Err(format!("{left} batches are left")) }
        });
        drained.await.map_err(|source| DeploymentError::Undrained { from, source })?;
        backbone.stop().await.map_err(DeploymentError::Child)
    }

    /// The streams are empty: what is left of them would only be in the way of the new ones.
    fn forget_streams(&self, from: HubSize) -> Result<(), DeploymentError> {
        // From the last to the first: as long as the first is there, a start that is cut short here begins anew.
        for number in from.numbers().rev() {
            let folder = self.layout.hub_server(number);
            remove(&if number == 1 { folder.join("js") } else { folder })?;
        }
        Ok(())
    }
}
