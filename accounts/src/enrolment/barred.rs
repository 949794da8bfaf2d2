//! Beside answering devices the desk listens to the gatekeepers: what they have barred for a day it revokes for good. It is the
//! one process that is always there and holds the authorities.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_bus::gate::{BARRED, BARRED_MOST, BarredItem, Barring};
use bulkhead_runtime::{Backoff, Chain, Trouble, now_ms};
use tokio::time::MissedTickBehavior;

use super::desk::Desk;
use crate::tenancy::TenancyError;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(60);

/// What is barred, and what became of it here.
struct Item {
    until_s: i64,
    is_done: bool,
    due: Instant,
    backoff: Backoff,
}

/// All that is barred now. Each is tried by itself: one that fails holds up no other.
#[derive(Default)]
struct Items(BTreeMap<BarredItem, Item>);

impl Items {
    fn take(&mut self, said: Vec<Barring>, now_s: i64, now: Instant) {
        self.0.retain(|_, item| item.until_s > now_s);
        for barring in said.into_iter().filter(|barring| barring.is_current(now_s)) {
            if self.0.len() < BARRED_MOST {
                let backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
                let new = Item { until_s: barring.until_s, is_done: false, due: now, backoff };
                self.0.entry(barring.what).or_insert(new);
            }
        }
    }

    /// What is to be tried now: the one that has waited longest.
    fn next_due(&self, now: Instant) -> Option<BarredItem> {
        let due = self.0.iter().filter(|(_, item)| !item.is_done && item.due <= now);
        due.min_by_key(|(_, item)| item.due).map(|(what, _)| what.clone())
    }

    fn settle(&mut self, what: &BarredItem, is_done: bool, now: Instant) {
        if let Some(item) = self.0.get_mut(what) {
            item.is_done = is_done;
            item.due = now + item.backoff.step();
        }
    }
}

impl Desk {
    /// Revokes what gatekeepers say that they have barred, for ever. They say it once a second.
    pub(super) async fn follow_barred(self: Arc<Self>) {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        let mut trouble = Trouble::new("listen to what gatekeepers have barred".to_owned());
        let mut items = Items::default();
        loop {
            match self.listen_to_barred(&mut items, &mut trouble).await {
                // The connection is lost: credentials may have ended, and are made anew for the next one.
                Ok(()) => backoff.reset(),
                Err(error) => {
                    trouble.begin(Chain(&error).to_string());
                }
            }
            backoff.pause().await;
        }
    }

    /// Until the connection is lost.
    async fn listen_to_barred(&self, items: &mut Items, trouble: &mut Trouble) -> Result<(), TenancyError> {
        let bus = self.connected_to_gate().await?;
        let mut said = bus.listen(BARRED).await.map_err(TenancyError::NotHeard)?;
        trouble.end();
        let mut failing = Trouble::new("revoke what gatekeepers have barred".to_owned());
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = said.next() => {
                    items.take(Barring::read_all(&message.body), now_ms() / 1_000, Instant::now());
                    continue;
                }
                _ = looks.tick() => {}
            }
            if !bus.is_connected() {
                return Ok(());
            }
            let Some(what) = items.next_due(Instant::now()) else { continue };
            let revoked = self.revoke_barred(&what).await;
            items.settle(&what, revoked.is_ok(), Instant::now());
            match revoked {
                Ok(()) => {
                    failing.end();
                }
                Err(error) => {
                    failing.begin(format!("{what}: {}", Chain(&error)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_holds_up_nothing_else_and_what_is_over_is_forgotten() {
        let (now, now_s) = (Instant::now(), 1_000);
        let what = |byte: &str| byte.repeat(32).parse::<BarredItem>().unwrap();
        let said = |byte: &str| vec![Barring::begin(what(byte), now_s)];
        let mut items = Items::default();
        items.take(said("0a"), now_s, now);
        assert_eq!(items.next_due(now), Some(what("0a")));
        items.settle(&what("0a"), false, now);
        items.take([said("0a"), said("0b")].concat(), now_s, now);
        assert_eq!(items.next_due(now), Some(what("0b")), "the other one does not wait for it");
        items.settle(&what("0b"), true, now);
        assert_eq!(items.next_due(now), None);
        let later = now + AGAIN_FIRST;
        assert_eq!(items.next_due(later), Some(what("0a")), "what failed is due again");
        items.settle(&what("0a"), true, later);
        items.take([said("0a"), said("0b")].concat(), now_s, later);
        assert_eq!(items.next_due(later + AGAIN_MOST), None, "what is done stays done");
        items.take(vec![Barring { what: what("0c"), until_s: now_s }], now_s, later);
        assert_eq!(items.0.len(), 2, "what is over is not taken");
        items.take(vec![], now_s + 100_000, later);
        assert!(items.0.is_empty());
    }
}
