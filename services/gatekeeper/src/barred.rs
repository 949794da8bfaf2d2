//! What was found where it does not belong: certificates, which for a day are let in nowhere, not even where they do belong,
//! because whoever holds the key has attacked; and the keys of tokens, which only servers can refuse.
//!
//! Replicas tell each other again and again, and each keeps what it knows on its disk. The enrolment desk hears it too, and
//! revokes for good what it hears of: it holds the authorities, and no gatekeeper does.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::Duration;

use bulkhead_bus::gate::{BARRED, BARRED_MOST, BarredItem, Barring, barred_subject};
use bulkhead_runtime::{Bus, Chain, Heart, Stop, now_ms};
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

const FILE: &str = "barred.json";
/// Beside the moment in which one is barred.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Until when.
#[derive(Debug)]
pub struct Barred {
    file: PathBuf,
    until: RwLock<BTreeMap<BarredItem, i64>>,
}

fn read(file: &Path) -> io::Result<BTreeMap<BarredItem, i64>> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn keep(file: &Path, until: &BTreeMap<BarredItem, i64>) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut written = tempfile::NamedTempFile::new_in(folder)?;
    written.write_all(&serde_json::to_vec(until)?)?;
    written.as_file().sync_all()?;
    written.persist(file)?;
    Ok(())
}

impl Barred {
    /// What an earlier process has left in `folder`. A file that cannot be read keeps nobody out: that would be an outage.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let until = read(&file).unwrap_or_else(|error| {
            warn!(error = %Chain(&error), file = %file.display(), "what is barred is not readable: nothing is");
            BTreeMap::new()
        });
        Self { file, until: RwLock::new(until) }
    }

    /// Whether a certificate is let in nowhere at `now_s`, unix seconds.
    #[must_use]
    pub fn has(&self, fingerprint: &str, now_s: i64) -> bool {
        let what = BarredItem::Certificate(fingerprint.to_owned());
        self.until.read().expect("no holder panics").get(&what).is_some_and(|until| *until > now_s)
    }

    /// Whether that is new. Blocks.
    fn add(&self, barring: &Barring, now_s: i64) -> bool {
        let kept = {
            let mut until = self.until.write().expect("no holder panics");
            until.retain(|_, until| *until > now_s);
            let is_new = barring.is_current(now_s) && until.len() < BARRED_MOST && !until.contains_key(&barring.what);
            if !is_new {
                return false;
            }
            until.insert(barring.what.clone(), barring.until_s);
            // Under the lock: what is written last has everything.
            keep(&self.file, &until)
        };
        if let Err(error) = kept {
            warn!(error = %Chain(&error), "what is barred is not on disk: a start forgets it");
        }
        true
    }

    /// Bars it for a day, and tells the other replicas. Whether that is new.
    pub async fn bar(&self, what: BarredItem, gatekeeper: &str, bus: &Bus) -> bool {
        let now_s = now_ms() / 1_000;
        let barring = Barring::begin(what, now_s);
        let is_new = tokio::task::block_in_place(|| self.add(&barring, now_s));
        if is_new {
            self.say(gatekeeper, bus).await;
        }
        is_new
    }

    /// Tells the other replicas of all of them.
    async fn say(&self, gatekeeper: &str, bus: &Bus) {
        let all: Vec<Barring> = {
            let until = self.until.read().expect("no holder panics");
            until.iter().map(|(what, &until_s)| Barring { what: what.clone(), until_s }).collect()
        };
        if all.is_empty() {
            return;
        }
        let text = serde_json::to_vec(&all).expect("what is said serializes");
        if let Err(error) = bus.publish(&barred_subject(gatekeeper), text.into()).await {
            debug!(error = %Chain(&error), "other replicas do not hear now of what is barred");
        }
    }

    /// Hears of the other replicas' until `stop`, and says its own now and then: one that was away hears them when it is back.
    ///
    /// # Errors
    /// When they cannot be listened for.
    pub async fn follow(&self, bus: Bus, gatekeeper: &str, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut said = bus.listen(BARRED).await?;
        let mut ticks = tokio::time::interval(SAY_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = said.next() => message,
                _ = ticks.tick() => {
                    heart.beat();
                    self.say(gatekeeper, &bus).await;
                    continue;
                }
                () = stop.cancelled() => return Ok(()),
            };
            for barring in Barring::read_all(&message.body) {
                tokio::task::block_in_place(|| self.add(&barring, now_ms() / 1_000));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_barred_is_kept_for_a_day_and_nothing_else_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let barred = Barred::open(folder.path());
        let fingerprint = "0a".repeat(32);
        let good = Barring::begin(fingerprint.parse().unwrap(), 1_000);
        let until_s = good.until_s;
        assert!(barred.add(&good, 1_000) && !barred.add(&good, 1_001), "it is new once");
        let again = Barred::open(folder.path());
        assert!(again.has(&fingerprint, until_s - 1) && !again.has(&fingerprint, until_s));
        let other: BarredItem = "0b".repeat(32).parse().unwrap();
        for until_s in [999, 2 * until_s] {
            assert!(!again.add(&Barring { what: other.clone(), until_s }, 1_000), "{until_s}");
        }
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(!Barred::open(folder.path()).has(&fingerprint, 1_000));
    }
}
