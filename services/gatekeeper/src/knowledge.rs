//! Where the gatekeeper knows from: the bucket GATE, a copy of it on this machine's disk for a start without it, and two
//! files of its own, the roots and the operator's token. What is not good leaves what was there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::{GATE_BUCKET, GateKey};
use bulkhead_claims::{Claims, OperatorBody, SealingKey, decode};
use bulkhead_identity::{TrustDomain, TrustedRoots, read_gate_record};
use bulkhead_runtime::{Backoff, BucketEntry, Bus, Chain, Heart, Stop, Trouble};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::decide::Trust;
use crate::gate::Gate;
use crate::metrics::{Metrics, add};

/// 10,000 accounts are read within seconds.
const READ_LIMIT: Duration = Duration::from_secs(60);
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// How long a start waits for the bucket before it goes on with the copy.
const BUCKET_LIMIT: Duration = Duration::from_secs(5);
/// How often the files are looked at.
const FILES_EVERY: Duration = Duration::from_secs(5);
/// What the copy of a removed record ends in: its epoch still counts.
const GONE: &str = "gone";

/// What decisions are made from.
pub struct Known {
    pub gate: Gate,
    pub trust: Trust,
    /// The operator's keys that may sign records.
    signers: BTreeSet<String>,
}

/// The files of its own.
#[derive(Debug, Clone)]
pub struct TrustFiles {
    pub root_file: PathBuf,
    pub operator_file: PathBuf,
    pub domain: TrustDomain,
}

/// Everything that is known, and how it comes here.
pub struct Knowledge {
    pub known: Arc<RwLock<Known>>,
    files: TrustFiles,
    folder: PathBuf,
    own: Arc<SealingKey>,
    metrics: Arc<Metrics>,
    /// Whether the bucket was read once.
    read: watch::Sender<bool>,
}

/// Which keys of the operator may sign.
fn signers_of(token: &str) -> anyhow::Result<BTreeSet<String>> {
    let claims: Claims<OperatorBody> = decode(token.trim()).context("read the operator's token")?;
    anyhow::ensure!(claims.is_self_signed(), "the operator's token is not signed by the operator itself");
    let identity = (!claims.nats.strict_signing_key_usage).then(|| claims.sub.clone());
    Ok(claims.nats.signing_keys.iter().cloned().chain(identity).collect())
}

impl TrustFiles {
    /// # Errors
    /// When a file cannot be read, or holds something else.
    pub fn read(&self) -> anyhow::Result<(Trust, BTreeSet<String>)> {
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let roots = TrustedRoots::from_pem(&read(&self.root_file)?)
            .with_context(|| format!("read the roots in {}", self.root_file.display()))?;
        let signers =
            signers_of(&read(&self.operator_file)?).with_context(|| self.operator_file.display().to_string())?;
        Ok((Trust { roots, domain: self.domain.clone() }, signers))
    }
}

/// Writes a whole file or none; only its owner may read it.
fn put_file(folder: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, value)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map_err(|error| error.error)?;
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Knowledge {
    /// Reads the files and the copy that an earlier process has left in `folder`.
    ///
    /// # Errors
    /// When one of its own files is not good, or the folder cannot be made.
    pub fn open(
        files: TrustFiles,
        folder: PathBuf,
        own: Arc<SealingKey>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (trust, signers) = files.read()?;
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let known = Known { gate: Gate::default(), trust, signers };
        let read = watch::Sender::new(false);
        let knowledge = Self { known: Arc::new(RwLock::new(known)), files, folder, own, metrics, read };
        knowledge.read_copy()?;
        Ok(knowledge)
    }

    fn read_copy(&self) -> anyhow::Result<()> {
        let mut values = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder).context("read the copy of the bucket")? {
            let path = entry.context("read the copy of the bucket")?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            values.insert(name, std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        for (name, value) in &values {
            match name.split_once('.') {
                Some((account, GONE)) => {
                    let Ok(account) = account.parse::<AccountKey>() else { continue };
                    self.remember_epoch(&account, value);
                }
                _ => self.take(name, Some(value)),
            }
        }
        let accounts = self.count();
        info!(accounts, "{accounts} accounts are known from the copy on this machine");
        Ok(())
    }

    fn remember_epoch(&self, account: &AccountKey, value: &[u8]) {
        let mut known = self.known.write().expect("no holder panics");
        let record = std::str::from_utf8(value).ok().and_then(|token| read_gate_record(token, &known.signers).ok());
        if let Some(record) = record.filter(|record| record.account == *account) {
            known.gate.remember_epoch(account, record.epoch);
        }
    }

    /// Returns whether it was taken.
    fn is_taken(&self, key: &GateKey, value: Option<&[u8]>) -> bool {
        let mut known = self.known.write().expect("no holder panics");
        let Known { gate, signers, .. } = &mut *known;
        let taken = match (key, value) {
            (GateKey::Record(account), Some(value)) => gate.take_record(account, value, signers),
            (GateKey::Keys(account), Some(value)) => gate.take_keys(account, value, &self.own),
            (GateKey::Record(account), None) => {
                gate.drop_record(account);
                Ok(())
            }
            (GateKey::Keys(account), None) => {
                gate.drop_keys(account);
                Ok(())
            }
        };
        drop(known);
        if let Err(error) = &taken {
            add(&self.metrics.records_refused, 1);
            warn!(key = %key.text(), error = %Chain(error), "what the gate's bucket says is not taken");
        }
        taken.is_ok()
    }

    fn take(&self, name: &str, value: Option<&[u8]>) {
        if let Some(key) = GateKey::parse(name) {
            self.is_taken(&key, value);
        }
    }

    /// Takes one entry of the bucket, and keeps it for the next start.
    fn take_entry(&self, entry: &BucketEntry) {
        let Some(key) = GateKey::parse(&entry.key) else {
            add(&self.metrics.records_refused, 1);
            warn!(key = entry.key, "the gate's bucket has a key that means nothing");
            return;
        };
        if !self.is_taken(&key, entry.value.as_deref()) {
            return;
        }
        let name = key.text();
        let kept = match (&key, &entry.value) {
            (_, Some(value)) => put_file(&self.folder, &name, value),
            // Its epoch counts on: a removed record does not come back by being said again.
            (GateKey::Record(account), None) => {
                match std::fs::rename(self.folder.join(&name), self.folder.join(format!("{account}.{GONE}"))) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    renamed => renamed,
                }
            }
            (GateKey::Keys(_), None) => remove_file(&self.folder.join(&name)),
        };
        if let Err(error) = kept {
            warn!(error = %Chain(&error), key = name, "the copy of the gate's bucket is not up to date");
        }
    }

    fn count(&self) -> usize {
        let count = self.known.read().expect("no holder panics").gate.len();
        self.metrics.accounts.set(i64::try_from(count).unwrap_or(i64::MAX));
        count
    }

    /// Makes what is known what the bucket says: what it does not have any more is dropped.
    fn take_all(&self, entries: &[BucketEntry]) {
        let there: BTreeSet<&str> =
            entries.iter().filter(|entry| entry.value.is_some()).map(|entry| entry.key.as_str()).collect();
        let accounts = self.known.read().expect("no holder panics").gate.accounts();
        for account in accounts {
            for key in [GateKey::Record(account.clone()), GateKey::Keys(account)] {
                if !there.contains(key.text().as_str()) {
                    self.take_entry(&BucketEntry { key: key.text(), value: None, revision: 0 });
                }
            }
        }
        entries.iter().for_each(|entry| self.take_entry(entry));
        self.count();
    }

    /// Waits until enough is known to decide by: what the bucket says, or after a while what it said before. Whoever decides
    /// knowing nothing keeps everybody out.
    pub async fn until_known(&self) {
        let mut read = self.read.subscribe();
        // The sender lives as long as we do.
        let mut bucket = std::pin::pin!(read.wait_for(|is_read| *is_read));
        if tokio::time::timeout(BUCKET_LIMIT, bucket.as_mut()).await.is_err() {
            if self.count() == 0 {
                let _ = bucket.await;
            } else {
                warn!("the gate's bucket is not read yet: deciding by what it said before");
            }
        }
    }

    /// Watches the bucket until `stop`.
    ///
    /// # Errors
    /// Never: it is watched anew when watching ends.
    pub async fn follow(&self, bus: Bus, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        let mut trouble = Trouble::new("watch the gate's bucket".to_owned());
        loop {
            let watched = heart.while_waiting(self.watch(&bus, &mut trouble, &mut backoff));
            tokio::select! {
                ended = watched => {
                    self.metrics.bucket_watched.set(0);
                    let why = ended.err().map_or_else(|| "it ended".to_owned(), |error| Chain(error.as_ref()).to_string());
                    trouble.begin(why);
                }
                () = stop.cancelled() => return Ok(()),
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    async fn watch(&self, bus: &Bus, trouble: &mut Trouble, backoff: &mut Backoff) -> anyhow::Result<()> {
        let (entries, mut watch) = bus.watch_bucket(GATE_BUCKET, READ_LIMIT).await?;
        self.take_all(&entries);
        self.metrics.bucket_watched.set(1);
        self.read.send_replace(true);
        trouble.end();
        backoff.reset();
        while let Some(entry) = watch.next().await? {
            self.take_entry(&entry);
            self.count();
        }
        Ok(())
    }

    /// Reads the roots and the operator's token again now and then, until `stop`: an authority or a signing key that is
    /// rotated is known without a start.
    ///
    /// # Errors
    /// Never: files that are not good leave what was there.
    pub async fn follow_files(&self, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(FILES_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = Trouble::new("read the roots and the operator's token".to_owned());
        loop {
            tokio::select! {
                _ = ticks.tick() => heart.beat(),
                () = stop.cancelled() => return Ok(()),
            }
            match self.files.read() {
                Ok((trust, signers)) => {
                    let mut known = self.known.write().expect("no holder panics");
                    (known.trust, known.signers) = (trust, signers);
                    drop(known);
                    trouble.end();
                }
                Err(error) => drop(trouble.begin(Chain(error.as_ref()).to_string())),
            }
        }
    }
}
