//! Settings that change while the poller runs: the file is read again when it is another one, or on SIGHUP, judged whole, and put
//! in force as far as that needs no new start.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::CheckName;
use bulkhead_checks::Prober;
use bulkhead_runtime::{Stop, change_filter};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::condition::Condition;
use crate::config::{Config, MemberSettings};
use crate::job::Job;
use crate::look_at_hindrances;
use crate::measure::local_jobs;
use crate::metrics::{Metrics, level};

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What is put in force at once; everything else waits for the next start.
const LIVE: [&str; 7] = ["capacity", "checks", "labels", "lease", "limits", "log_filter", "rules"];

/// Tells one content of a file from the next without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified_ns: i128,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Some(Self { inode: found.ino(), size: found.size(), modified_ns })
    }
}

/// Where settings were read from, and what was read: each by its first word.
#[derive(Clone)]
pub(crate) struct Source {
    file: Option<PathBuf>,
    stamp: Option<Stamp>,
    values: BTreeMap<String, Value>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values may hold a proxy's password.
        f.debug_struct("Source").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Source {
    /// `read` reads it: what changes after this is another content.
    pub(crate) fn of<E>(
        file: Option<&Path>,
        read: impl FnOnce() -> Result<BTreeMap<String, Value>, E>,
    ) -> Result<Self, E> {
        let stamp = file.and_then(Stamp::of);
        Ok(Self { file: file.map(Path::to_owned), stamp, values: read()? })
    }

    /// What differs in `new`, by first words.
    fn changed(&self, new: &Self) -> Vec<String> {
        let names = self.values.keys().chain(new.values.keys());
        let mut changed: Vec<String> =
            names.filter(|name| self.values.get(*name) != new.values.get(*name)).cloned().collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}

/// What may change while the process runs.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    /// Checks of the poller's own settings.
    pub(crate) checks: HashMap<CheckName, Arc<Job>>,
    pub(crate) checks_at_once: usize,
    pub(crate) member: MemberSettings,
}

impl Live {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            checks: local_jobs(config.checks.clone()),
            checks_at_once: config.checks_at_once,
            member: config.member.clone(),
        }
    }
}

/// Reads them again.
pub(crate) struct Rereader {
    pub(crate) source: Source,
    pub(crate) live: watch::Sender<Live>,
    pub(crate) prober: Arc<Prober>,
    pub(crate) condition: Arc<Condition>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Rereader {
    /// Until `stop`. A file that is being written is read once it has stood still from one look to the next.
    pub(crate) async fn run(mut self, stop: Stop) -> anyhow::Result<()> {
        let mut hangups = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.source.stamp;
        let mut read = seen;
        loop {
            let is_asked = tokio::select! {
                _ = looks.tick() => false,
                _ = hangups.recv() => true,
                () = stop.cancelled() => return Ok(()),
            };
            let Some(file) = self.source.file.clone() else { continue };
            let now = Stamp::of(&file);
            let is_still = std::mem::replace(&mut seen, now) == now;
            if is_asked || (is_still && now != read) {
                read = now;
                self.read_again(&file);
            }
        }
    }

    fn read_again(&mut self, file: &Path) {
        let config = match Config::load(Some(file)) {
            Ok(config) => config,
            Err(problems) => {
                self.metrics.settings_refused.set(1);
                error!("{} is wrong, the settings before stay in force:\n{problems}", file.display());
                return;
            }
        };
        self.metrics.settings_refused.set(0);
        let changed = self.source.changed(&config.source);
        let (live, waiting): (Vec<String>, Vec<String>) =
            changed.into_iter().partition(|name| LIVE.contains(&name.as_str()));
        self.metrics.settings_waiting.set(level(waiting.len()));
        if !waiting.is_empty() {
            warn!("{} wait for the next start of this poller: {}", file.display(), waiting.join(", "));
        }
        if let Err(problem) = change_filter(&config.log_filter) {
            warn!("the log filter stays as it is: {problem}");
        }
        self.prober.reread(config.rules.clone());
        look_at_hindrances(&self.prober, &config.checks, &self.condition);
        self.live.send_replace(Live::of(&config));
        for name in &live {
            match config.source.values.get(name) {
                Some(value) => drop(self.source.values.insert(name.clone(), value.clone())),
                None => drop(self.source.values.remove(name)),
            }
        }
        match live.is_empty() {
            true => info!("{} was read again: nothing that is in force changes", file.display()),
            false => info!("{} was read again, in force now: {}", file.display(), live.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::convert::Infallible;

    fn source(values: Value) -> Source {
        Source::of::<Infallible>(None, || Ok(serde_json::from_value(values).unwrap())).unwrap()
    }

    #[test]
    fn what_differs_is_named_once_by_its_first_word() {
        let before = source(json!({"a": 1, "b": {"c": 2, "d": 3}, "gone": true, "same": [1]}));
        let after = source(json!({"a": 1, "b": {"c": 9, "d": 9}, "new": 5, "same": [1]}));
        assert_eq!(before.changed(&after), ["b", "gone", "new"]);
        assert!(before.changed(&before).is_empty());
    }

    #[test]
    fn another_content_has_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("poller.toml");
        assert_eq!(Stamp::of(&file), None);
        std::fs::write(&file, "a").unwrap();
        let first = Stamp::of(&file);
        assert_eq!(first, Stamp::of(&file));
        std::fs::write(&file, "ab").unwrap();
        assert_ne!(first, Stamp::of(&file));
        let longer = Stamp::of(&file);
        std::fs::write(folder.path().join("new"), "cd").unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
        assert_ne!(longer, Stamp::of(&file), "a file that takes its place is another");
    }
}
