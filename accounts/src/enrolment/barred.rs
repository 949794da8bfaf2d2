//! Beside answering devices the desk listens to the gatekeepers: what they have barred for a day it revokes for good. It is the
//! one process that is always there and holds the authorities.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::gate::{BARRED, BarredItem, Barring};
use bulkhead_runtime::{Backoff, Chain, Trouble};

use super::desk::Desk;
use crate::tenancy::TenancyError;

const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(30);
/// What this process remembers of what it has done; beyond that it is told once more, which changes nothing.
const DONE_MOST: usize = 10_000;

impl Desk {
    /// Revokes what gatekeepers say that they have barred, for ever. They say it once a second: what fails comes again.
    pub(super) async fn follow_barred(self: Arc<Self>) {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        let mut trouble = Trouble::new("revoke what gatekeepers have barred".to_owned());
        let mut done = BTreeSet::new();
        loop {
            // What fails below is of one item; this ends when there is nobody to listen to.
            let Err(error) = self.listen_to_barred(&mut done, &mut trouble).await;
            trouble.begin(Chain(&error).to_string());
            backoff.pause().await;
        }
    }

    async fn listen_to_barred(
        &self,
        done: &mut BTreeSet<BarredItem>,
        trouble: &mut Trouble,
    ) -> Result<std::convert::Infallible, TenancyError> {
        let bus = self.connected_to_gate().await?;
        let mut said = bus.listen(BARRED).await.map_err(TenancyError::NotHeard)?;
        trouble.end();
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        loop {
            let message = said.next().await;
            let Ok(barrings) = serde_json::from_slice::<Vec<Barring>>(&message.body) else { continue };
            for what in barrings.into_iter().map(|barring| barring.what) {
                if done.contains(&what) {
                    continue;
                }
                match self.revoke_barred(&what).await {
                    Ok(()) => {
                        if done.len() >= DONE_MOST {
                            done.clear();
                        }
                        done.insert(what);
                        trouble.end();
                        backoff.reset();
                    }
                    Err(error) => {
                        trouble.begin(format!("{what}: {}", Chain(&error)));
                        backoff.pause().await;
                    }
                }
            }
        }
    }
}
