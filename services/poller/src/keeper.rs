//! Looks after the leaf beside this poller, as the leaf's own machine: has it read its files again, and makes its link to the
//! hub anew when there has been none for long.
//!
//! On bad links servers are known to stop looking for their hub until they are started again (facts: edge-and-identity
//! section 1.6). Turning the remote off and on in its configuration starts it from inside, whatever runs the leaf (ADR 14).
//! Off it stays for a moment of its own: thousands of leaves that keep each other out come back one after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::question::{server_leaves, server_reload};
use bulkhead_runtime::{Bus, BusSettings, Chain, ConnectError, RequestError, Stop, Trouble, now_ms};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::warn;

use crate::edge::connect_patiently;
use crate::enroll::{FolderError, PUBLIC, put_whole};
use crate::metrics::{Metrics, count};

const NAME: &str = "keeper";
const LOOK_EVERY: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A hub that is away for days is not looked for anew more often than that.
const PAUSE_MOST: Duration = Duration::from_secs(3_600);
/// What the file of the link says, which the leaf's configuration includes.
const ON: &str = "disabled: false\n";
const OFF: &str = "disabled: true\n";
/// Stands before the time until which it is off, in unix milliseconds.
const UNTIL: &str = "# until ";
/// A link that is off stays off for as long as chance says, and never longer: so many leaves of one hub come back evenly.
const REST_MOST: Duration = Duration::from_secs(30);

/// How the leaf is reached as its own machine, and what is done for it.
#[derive(Debug, Clone)]
pub(crate) struct KeeperSettings {
    pub(crate) leaf: BusSettings,
    /// Says whether the leaf links to the hub.
    pub(crate) link_file: PathBuf,
    /// How long there may be no link before it is made anew.
    pub(crate) stuck_after: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeeperError {
    #[error("connect to the leaf as its machine")]
    Connect(#[source] ConnectError),
    #[error("ask the leaf")]
    Ask(#[source] RequestError),
    #[error("what the leaf answers about its links is not readable")]
    Unreadable(#[source] serde_json::Error),
    #[error("the leaf does not take its files: {0}")]
    NotTaken(String),
    #[error("turn the link")]
    Folder(#[source] FolderError),
}

/// What a server answers about its leaf links.
#[derive(Deserialize)]
struct Links {
    data: LinkCount,
}

#[derive(Deserialize)]
struct LinkCount {
    leafnodes: usize,
}

/// For how long there has been no link.
struct Absence {
    since: Option<Instant>,
    first: Duration,
    pause: Duration,
    /// The last rest that was seen, of another poller of this site too. Unix milliseconds.
    rested_until_ms: i64,
}

impl Absence {
    fn new(first: Duration) -> Self {
        Self { since: None, first, pause: first, rested_until_ms: 0 }
    }

    /// Whether the link is to be made anew.
    fn is_over(&mut self, has_link: bool, now: Instant) -> bool {
        if has_link {
            *self = Self::new(self.first);
            return false;
        }
        now - *self.since.get_or_insert(now) >= self.pause
    }

    /// It is turned off until `until_ms`, by whomever: the next time after twice as long.
    fn rest(&mut self, until_ms: i64, now: Instant) {
        self.since = Some(now);
        if self.rested_until_ms != until_ms {
            self.rested_until_ms = until_ms;
            self.pause = (self.pause * 2).min(PAUSE_MOST.max(self.first));
        }
    }
}

/// Speaks to the leaf by the leaf's own certificate, which may do that and nothing else there.
pub(crate) struct Keeper {
    pub(crate) settings: KeeperSettings,
    pub(crate) metrics: Arc<Metrics>,
}

impl Keeper {
    /// # Errors
    /// When the leaf cannot be told, or does not take what it finds.
    pub(crate) async fn have_files_read(&self) -> Result<(), KeeperError> {
        let bus = Bus::connect(&self.settings.leaf, NAME).await.map_err(KeeperError::Connect)?;
        reload(&bus).await
    }

    /// Until `stop`.
    ///
    /// # Errors
    /// Never: what fails is tried again.
    pub(crate) async fn watch(self: Arc<Self>, stop: Stop) -> anyhow::Result<()> {
        let bus = tokio::select! {
            bus = connect_patiently(&self.settings.leaf, NAME) => bus,
            () = stop.cancelled() => return Ok(()),
        };
        let mut ticks = tokio::time::interval(LOOK_EVERY.min(self.settings.stuck_after / 3));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut absence = Absence::new(self.settings.stuck_after);
        // The last process may have ended between off and on.
        let mut is_on = false;
        let mut trouble = Trouble::new("look after the leaf's link".to_owned());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return Ok(()),
            }
            // A leaf that is away, or has just come, has no link because of that.
            if !bus.is_connected() {
                absence = Absence::new(self.settings.stuck_after);
                continue;
            }
            match self.look(&bus, &mut absence, &mut is_on).await {
                Ok(()) => trouble.end(),
                Err(error) => trouble.begin(Chain(&error).to_string()),
            };
        }
    }

    async fn look(&self, bus: &Bus, absence: &mut Absence, is_on: &mut bool) -> Result<(), KeeperError> {
        let has_link = has_link(bus).await?;
        self.metrics.leaf_linked.set(i64::from(has_link));
        if let Some(until_ms) = rests_until(&self.settings.link_file, now_ms()) {
            absence.rest(until_ms, Instant::now());
            *is_on = false;
            return Ok(());
        }
        if !*is_on || !self.is_turned(ON) {
            self.turn(ON)?;
            reload(bus).await?;
            *is_on = true;
        }
        if absence.is_over(has_link, Instant::now()) {
            // What fails is due again at the next look, and counts for nothing.
            let rest = REST_MOST.min(self.settings.stuck_after).mul_f64(fastrand::f64());
            let until_ms = now_ms() + i64::try_from(rest.as_millis()).unwrap_or(i64::MAX);
            self.turn(&format!("{OFF}{UNTIL}{until_ms}\n"))?;
            *is_on = false;
            if let Err(error) = reload(bus).await {
                self.turn(ON)?;
                return Err(error);
            }
            absence.rest(until_ms, Instant::now());
            count(&self.metrics.leaf_link_restarts, 1);
            warn!(?rest, "the leaf had no link to the hub for long: it is off for a moment, and made anew then");
        }
        Ok(())
    }

    fn is_turned(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.settings.link_file).is_ok_and(|there| there == text)
    }

    fn turn(&self, text: &str) -> Result<(), KeeperError> {
        if self.is_turned(text) {
            return Ok(());
        }
        put_whole(&self.settings.link_file, text.as_bytes(), PUBLIC).map_err(KeeperError::Folder)
    }
}

/// Until when this poller or another one of the site has turned the link off; a time that none of them can have meant is none.
fn rests_until(link_file: &Path, now_ms: i64) -> Option<i64> {
    let text = std::fs::read_to_string(link_file).ok()?;
    let until_ms = text.strip_prefix(OFF)?.trim().strip_prefix(UNTIL)?.parse().ok()?;
    let most_ms = now_ms + i64::try_from(REST_MOST.as_millis()).unwrap_or(i64::MAX);
    (now_ms < until_ms && until_ms <= most_ms).then_some(until_ms)
}

async fn reload(bus: &Bus) -> Result<(), KeeperError> {
    let answer =
        bus.request(&server_reload(&bus.server_id()), "".into(), ANSWER_LIMIT).await.map_err(KeeperError::Ask)?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    match answer.get("error") {
        None | Some(Value::Null) => Ok(()),
        Some(error) => Err(KeeperError::NotTaken(error.to_string())),
    }
}

async fn has_link(bus: &Bus) -> Result<bool, KeeperError> {
    let answer = bus.request(&server_leaves(&bus.server_id()), "{}".into(), ANSWER_LIMIT).await;
    let links: Links = serde_json::from_slice(&answer.map_err(KeeperError::Ask)?).map_err(KeeperError::Unreadable)?;
    Ok(links.data.leafnodes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_anew_after_a_while_and_then_ever_more_rarely() {
        let begin = Instant::now();
        let minute = |number: u64| begin + Duration::from_secs(60 * number);
        let mut absence = Absence::new(Duration::from_secs(300));
        let mut anew = Vec::new();
        for number in 0..200 {
            if absence.is_over(false, minute(number)) {
                assert!(absence.is_over(false, minute(number)), "what failed is not due again");
                for _of_the_same_rest in 0..2 {
                    absence.rest(i64::try_from(number).unwrap(), minute(number));
                }
                anew.push(number);
            }
        }
        assert_eq!(anew, [5, 15, 35, 75, 135, 195]);
        assert!(!absence.is_over(true, minute(200)));
        assert!(!absence.is_over(false, minute(201)));
        assert!(!absence.is_over(false, minute(205)));
        assert!(absence.is_over(false, minute(206)), "a link that was there begins it anew");
    }
    #[test]
    fn a_link_rests_as_long_as_its_file_says_and_a_time_that_nobody_meant_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("remote.conf");
        assert_eq!(rests_until(&file, 1_000), None, "there is no file");
        for (text, expected) in [
            (ON.to_owned(), None),
            (OFF.to_owned(), None),
            (format!("{OFF}{UNTIL}2000\n"), Some(2_000)),
            (format!("{OFF}{UNTIL}1000\n"), None),
            (format!("{OFF}{UNTIL}31000\n"), Some(31_000)),
            (format!("{OFF}{UNTIL}31001\n"), None),
            (format!("{OFF}{UNTIL}soon\n"), None),
            (format!("{ON}{UNTIL}2000\n"), None),
        ] {
            std::fs::write(&file, &text).unwrap();
            assert_eq!(rests_until(&file, 1_000), expected, "{text}");
        }
    }
}
