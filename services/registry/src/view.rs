//! What this replica has seen of everybody, and whether that may be believed. Clones share it.

use std::collections::HashSet;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use bulkhead_bus::members::{INFO_BUCKET, LEASE_BUCKET};
use bulkhead_bus::{AccountKey, MemberKey};
use bulkhead_runtime::{BucketEntry, ValueEnd, now_ms};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::members::{Change, Event, Members, Reading};
use crate::metrics::Metrics;
use crate::trust::{Doubt, Standing, Trust};

/// Both buckets as they were read.
pub(crate) struct Read {
    pub(crate) asked: Instant,
    /// How far the bucket of leases had come before.
    pub(crate) revision: u64,
    pub(crate) leases: Vec<BucketEntry>,
    pub(crate) infos: Vec<BucketEntry>,
}

#[derive(Debug, Default)]
struct State {
    members: Members,
    trust: Trust,
    is_first_read: bool,
    /// How far the bucket of leases has been seen.
    revision: u64,
    /// How far it had come when it was last asked.
    asked: Option<(Instant, u64)>,
    /// Tenants of whom there is news that nobody was told.
    news: HashSet<AccountKey>,
    was_known: bool,
}

#[derive(Clone)]
pub struct View {
    state: Arc<RwLock<State>>,
    changed: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

impl View {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let state = State { is_first_read: true, ..State::default() };
        Self { state: Arc::new(RwLock::new(state)), changed: watch::Sender::new(0), metrics }
    }

    /// What is seen now, how far to go by it, and how far it goes.
    pub fn look<T>(&self, look: impl FnOnce(&Members, Standing, u64) -> T) -> T {
        let state = self.state.read().expect("no holder panics");
        look(&state.members, state.trust.standing(Instant::now()), state.revision)
    }

    #[must_use]
    pub fn standing(&self) -> Standing {
        self.look(|_, standing, _| standing)
    }

    /// Changes whenever there is news of anybody, or it is to be believed or not any more.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tenants of whom there is news since this was last asked.
    #[must_use]
    pub fn take_news(&self) -> HashSet<AccountKey> {
        std::mem::take(&mut self.state.write().expect("no holder panics").news)
    }

    /// Who has to be told again, because telling has failed.
    pub fn give_back(&self, news: impl IntoIterator<Item = AccountKey>) {
        self.state.write().expect("no holder panics").news.extend(news);
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (value, is_news) = {
            let mut state = self.state.write().expect("no holder panics");
            let value = change(&mut state);
            let is_known = state.trust.standing(Instant::now()).is_known();
            let is_turned = std::mem::replace(&mut state.was_known, is_known) != is_known;
            if is_turned {
                let everybody: Vec<AccountKey> = state.members.accounts().cloned().collect();
                state.news.extend(everybody);
                match is_known {
                    true => info!("the leases are known"),
                    false => warn!("the leases are not to be believed: nobody is taken for lost"),
                }
            }
            (value, is_turned || !state.news.is_empty())
        };
        if is_news {
            self.changed.send_modify(|count| *count += 1);
        }
        value
    }

    fn note_doubt(&self, doubt: Option<Doubt>) {
        if let Some(doubt) = doubt {
            self.metrics.doubts.of(doubt).inc();
        }
    }

    /// Takes in both buckets, whole; what became of whom since they were last read.
    pub(crate) fn take_read(&self, read: Read) -> Vec<Event> {
        let events = self.change(|state| {
            if read.revision < state.revision {
                // Another bucket has taken its place.
                (state.members, state.revision) = (Members::default(), 0);
            }
            let reading = if state.is_first_read { Reading::First } else { Reading::News };
            state.is_first_read = false;
            let keys =
                |entries: &[BucketEntry]| entries.iter().filter_map(|entry| MemberKey::parse(&entry.key)).collect();
            let (leases, infos): (HashSet<_>, HashSet<_>) = (keys(&read.leases), keys(&read.infos));
            state.members.forget_others(&leases, &infos);
            let mut events = Vec::new();
            for entry in &read.infos {
                events.extend(state.take(INFO_BUCKET, entry, reading).events);
            }
            for entry in &read.leases {
                events.extend(state.take(LEASE_BUCKET, entry, reading).events);
            }
            state.revision = state.revision.max(read.revision);
            let ttl = state.members.longest_ttl();
            self.note_doubt(state.trust.note_read(read.asked, ttl));
            state.asked = None;
            let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            let is_recent =
                |entry: &&BucketEntry| entry.end == Some(ValueEnd::Expired) && now_ms() - entry.at_ms < ttl_ms;
            for _ in read.leases.iter().filter(is_recent) {
                let live = state.members.live();
                self.note_doubt(state.trust.note_expiry(read.asked, live, ttl));
            }
            events
        });
        self.changed.send_modify(|count| *count += 1);
        events
    }

    /// Takes in one entry of a bucket.
    pub(crate) fn take(&self, bucket: &'static str, entry: &BucketEntry) -> Vec<Event> {
        self.change(|state| {
            let live = state.members.live();
            let change = state.take(bucket, entry, Reading::News);
            if bucket == LEASE_BUCKET {
                if state.members.live() < live && entry.end == Some(ValueEnd::Expired) {
                    self.metrics.leases_expired.inc();
                    let (live, ttl) = (state.members.live(), state.members.longest_ttl());
                    self.note_doubt(state.trust.note_expiry(Instant::now(), live, ttl));
                }
                self.note_doubt(state.note_progress());
            }
            change.events
        })
    }

    pub(crate) fn note_loss(&self) {
        self.change(|state| state.trust.note_loss());
    }

    /// The bucket of leases had come as far as `revision` when it was asked at `asked`; false when it is another bucket.
    pub(crate) fn note_asked(&self, asked: Instant, revision: u64) -> bool {
        self.change(|state| {
            // What was not seen yet is still waited for: a bucket that is always written into has no end.
            let is_behind = state.asked.is_some_and(|(_, revision)| state.revision < revision);
            if !is_behind {
                state.asked = Some((asked, revision));
            }
            self.note_doubt(state.note_progress());
            revision >= state.revision || state.revision == 0
        })
    }

    /// Says whether it is to be believed by now.
    pub(crate) fn look_again(&self) -> Standing {
        self.change(|state| state.trust.standing(Instant::now()))
    }
}

impl State {
    fn take(&mut self, bucket: &'static str, entry: &BucketEntry, reading: Reading) -> Change {
        if bucket == LEASE_BUCKET {
            self.revision = self.revision.max(entry.revision);
        }
        let Some(key) = MemberKey::parse(&entry.key) else { return Change::default() };
        let change = match bucket {
            LEASE_BUCKET => self.members.take_lease(&key, entry, reading),
            _ => self.members.take_info(&key, entry, reading),
        };
        if change.is_news {
            self.news.insert(key.account);
        }
        change
    }

    fn note_progress(&mut self) -> Option<Doubt> {
        let (asked, revision) = self.asked?;
        if self.revision < revision {
            return None;
        }
        self.trust.note_progress(asked, self.members.longest_ttl())
    }
}
