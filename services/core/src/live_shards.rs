//! Live streams come from INTAKE accounts, one file each in a folder: a file that appears is a shard that is connected, one
//! after the other, and a file that goes is a shard that is left. A shard that cannot be read or reached stops no other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_runtime::{Bus, BusSettings, Chain, Heart, Loops, Reached, Readiness, Said, Stop};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::handlers::live::LiveReader;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Beyond it the next shard has its turn.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The connections that are shown as core's.
pub type LiveBuses = Arc<Mutex<Vec<Bus>>>;

/// What keeps the shards of a folder connected.
pub struct LiveShards {
    pub folder: PathBuf,
    pub reader: LiveReader,
    pub readiness: Readiness,
    pub loops: Loops,
    /// Whether every shard of the folder is connected.
    pub reached: Reached,
    pub buses: LiveBuses,
    pub said: Said,
}

/// A shard that is connected, with the settings that it is connected by.
struct Shard {
    text: String,
    bus: Bus,
    stop: Stop,
    reading: JoinHandle<()>,
}

/// Settings of the files of a folder, by name; whatever cannot be read has its problem instead.
type Found = BTreeMap<String, Result<String, String>>;

/// Every `*.toml` of the folder. What begins with a dot is being written.
fn look_into(folder: &Path) -> std::io::Result<Found> {
    let mut found = Found::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(shard) = name.strip_suffix(".toml").filter(|shard| !shard.starts_with('.')) else { continue };
        match read_small(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            read => drop(found.insert(shard.to_owned(), read.map_err(|error| error.to_string()))),
        }
    }
    Ok(found)
}

fn read_small(path: &Path) -> std::io::Result<String> {
    let bytes = fs::metadata(path)?.len();
    if bytes > FILE_BYTES_MAX {
        let problem = format!("it has {bytes} bytes: settings of a shard have at most {FILE_BYTES_MAX}");
        return Err(std::io::Error::other(problem));
    }
    fs::read_to_string(path)
}

/// # Errors
/// Every setting that is wrong, in one line.
fn settings_of(text: &str) -> Result<BusSettings, String> {
    let settings: BusSettings = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let problems = settings.hub_problems("shard");
    if problems.is_empty() { Ok(settings) } else { Err(problems.join(";").trim().to_owned()) }
}

impl LiveShards {
    /// Looks at the folder again and again until `stop`.
    ///
    /// # Errors
    /// Never: what cannot be read or reached is tried again.
    pub async fn run(self, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut shards: BTreeMap<String, Shard> = BTreeMap::new();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => heart.beat(),
                () = stop.cancelled() => break,
            }
            let found = match look_into(&self.folder) {
                Ok(found) => found,
                Err(error) => {
                    // A folder that is away for a moment takes no shard with it.
                    self.report("the folder of live streams is not read", &self.folder.display(), &error);
                    self.reached.set(false);
                    continue;
                }
            };
            self.leave(&mut shards, &found);
            let is_whole = tokio::select! {
                is_whole = heart.while_waiting(self.join(&mut shards, found, &stop)) => is_whole,
                () = stop.cancelled() => break,
            };
            self.show(&shards, is_whole);
        }
        shards.values().for_each(|shard| shard.stop.cancel());
        for (_, shard) in shards {
            shard.reading.await.context("a reader of live streams panicked")?;
        }
        Ok(())
    }

    /// Leaves what is gone or reads otherwise now, and what has ended by itself.
    fn leave(&self, shards: &mut BTreeMap<String, Shard>, found: &Found) {
        shards.retain(|name, shard| {
            let is_kept = match found.get(name) {
                Some(Ok(text)) => *text == shard.text && !shard.reading.is_finished(),
                // What worked goes on until there is something better.
                Some(Err(_)) => !shard.reading.is_finished(),
                None => false,
            };
            if !is_kept {
                info!(shard = name, "live streams of {name} are left");
                shard.stop.cancel();
            }
            is_kept
        });
        self.show(shards, self.reached.get());
    }

    /// Joins what is new, one after the other. Returns whether every shard is there.
    async fn join(&self, shards: &mut BTreeMap<String, Shard>, found: Found, stop: &Stop) -> bool {
        let mut is_whole = true;
        for (name, read) in found {
            if shards.contains_key(&name) {
                // It goes on, whatever its file looks like now.
                read.err()
                    .iter()
                    .for_each(|problem| self.report("settings of live streams are not read", &name, problem));
                continue;
            }
            match self.connect(&name, read, stop).await {
                Ok(shard) => {
                    info!(shard = name, "live streams of {name} are shown");
                    shards.insert(name, shard);
                }
                Err(problem) => {
                    is_whole = false;
                    self.report("live streams are not shown", &name, &problem);
                }
            }
        }
        is_whole
    }

    async fn connect(&self, shard: &str, read: Result<String, String>, stop: &Stop) -> Result<Shard, String> {
        let text = read?;
        let settings = settings_of(&text)?;
        // The gatekeeper reads which of its roles core comes in, and into which of the accounts that have such a role.
        let name = format!("core-live@{shard}");
        let connecting = tokio::time::timeout(CONNECT_LIMIT, Bus::connect(&settings, &name));
        let connected = connecting.await.map_err(|_| format!("no connection within {CONNECT_LIMIT:?}"))?;
        let bus = connected.map_err(|error| Chain(&error).to_string())?;
        let stop = stop.child_token();
        let heart = self.loops.watch("live");
        let reading = self.reader.clone().run(bus.clone(), self.readiness.clone(), heart, stop.clone());
        let reading = async move {
            if let Err(error) = reading.await {
                warn!(error = format!("{error:#}"), "live streams are not read");
            }
        };
        Ok(Shard { text, bus, stop, reading: tokio::spawn(reading) })
    }

    fn show(&self, shards: &BTreeMap<String, Shard>, is_whole: bool) {
        self.reached.set(is_whole && shards.values().all(|shard| shard.bus.is_connected()));
        if is_whole {
            // Also of an empty folder: there is nothing to wait for.
            self.readiness.mark("live");
        }
        *self.buses.lock().expect("no holder panics") = shards.values().map(|shard| shard.bus.clone()).collect();
    }

    fn report(&self, what: &'static str, of: &dyn std::fmt::Display, problem: &dyn std::fmt::Display) {
        if self.said.is_news(format!("{what}: {of}: {problem}"), Instant::now()) {
            warn!(of = %of, "{what}: {of}: {problem}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_file_by_file() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("intake-1.toml", "a"), ("intake-2.toml", "b"), (".intake-3.toml", "c"), ("note", "d")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(folder.path().join("large.toml"), vec![b' '; 65 * 1024]).unwrap();
        fs::create_dir(folder.path().join("folder.toml")).unwrap();
        let found = look_into(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|(name, read)| (name.as_str(), read.is_ok())).collect();
        assert_eq!(names, [("folder", false), ("intake-1", true), ("intake-2", true), ("large", false)]);
        assert!(look_into(&folder.path().join("none")).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_shard_is_said() {
        for (text, part) in [
            ("urls = []", "missing field"),
            ("urls = 3", "invalid type"),
            ("urls=[]\nurl='x'\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}", "unknown field"),
            ("urls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}", "names no server"),
        ] {
            let problem = settings_of(text).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
