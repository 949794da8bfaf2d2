//! Where the gatekeeper knows from: the bucket GATE, a copy of it on this machine's disk for a start without it, and two
//! files of its own, the roots and the operator's token. What is not good leaves what was there, and is tried again when
//! something else has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::{GATE_BUCKET, GateKey, RECORDS, SAID_RECORDS, record_subject};
use bulkhead_claims::{Claims, OperatorBody, SealingKey, decode};
use bulkhead_identity::{TrustDomain, TrustedRoots, read_gate_record};
use bulkhead_runtime::{Backoff, Bus, Chain, Heart, Stop, Trouble};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::copy::Copy;
use crate::decide::Trust;
use crate::gate::{Gate, NotTaken};
use crate::metrics::{Metrics, add};

/// 10,000 accounts are read within seconds.
const READ_LIMIT: Duration = Duration::from_secs(60);
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// How long a start waits for the bucket before it goes on with the copy.
const BUCKET_LIMIT: Duration = Duration::from_secs(5);
/// How often the files are looked at.
const FILES_EVERY: Duration = Duration::from_secs(1);
/// How often replicas say what they have heard and the bucket has not kept: within a second of two finding each other again
/// both know it.
const SAY_EVERY: Duration = Duration::from_millis(500);
/// Entries that were not taken and are tried again; beyond it they count only.
const REFUSED_MOST: usize = 1_000;

/// What decisions are made from.
pub struct Known {
    pub gate: Gate,
    pub trust: Trust,
    /// Whether the bucket is watched now, so that what is known is what it says.
    pub is_current: bool,
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

/// Where an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// From the bucket, or from the copy of it.
    Bucket,
    /// On its way to the bucket, or from another replica.
    Heard,
}

/// Everything that is known, and how it comes here.
pub struct Knowledge {
    pub known: Arc<RwLock<Known>>,
    files: TrustFiles,
    copy: Copy,
    own: Arc<SealingKey>,
    metrics: Arc<Metrics>,
    /// Whether the bucket was read once.
    read: watch::Sender<bool>,
    /// The bucket is to be read anew.
    again: Notify,
    refused: Mutex<BTreeMap<String, Bytes>>,
    /// Records that were heard and that the bucket does not have: other replicas may not have heard them.
    unkept: Mutex<BTreeMap<AccountKey, Bytes>>,
    /// Whoever takes something keeps it before another one takes what is newer.
    taking: tokio::sync::Mutex<()>,
    /// Accounts whose records admit less than before: somebody may be in who would not be let in now.
    narrowed: mpsc::UnboundedSender<AccountKey>,
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

impl Knowledge {
    /// Reads the files and the copy that an earlier process has left in `folder`. The receiver hears of each account whose
    /// record admits less than before.
    ///
    /// # Errors
    /// When one of its own files is not good, or the folder cannot be read.
    pub fn open(
        files: TrustFiles,
        folder: PathBuf,
        own: Arc<SealingKey>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<AccountKey>)> {
        let (trust, signers) = files.read()?;
        let copy = Copy::open(folder.clone()).with_context(|| format!("make {}", folder.display()))?;
        let found = copy.read().with_context(|| format!("read the copy of the bucket in {}", folder.display()))?;
        let known = Known { gate: Gate::default(), trust, is_current: false, signers };
        let (read, again) = (watch::Sender::new(false), Notify::new());
        let known = Arc::new(RwLock::new(known));
        let (narrowed, narrowings) = mpsc::unbounded_channel();
        let (refused, unkept, taking) = (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        let knowledge = Self { known, files, copy, own, metrics, read, again, refused, unkept, taking, narrowed };
        for (account, value) in found.gone {
            let mut known = knowledge.known.write().expect("no holder panics");
            let token = std::str::from_utf8(&value).ok();
            let record = token.and_then(|token| read_gate_record(token, &known.signers).ok());
            if let Some(record) = record.filter(|record| record.account == account) {
                known.gate.remember_epoch(&account, record.epoch);
            }
        }
        for (key, value) in found.entries {
            knowledge.take(&key, Some(value.into()), Source::Bucket);
        }
        let accounts = knowledge.count();
        info!(accounts, "{accounts} accounts are known from the copy on this machine");
        Ok((knowledge, narrowings))
    }

    /// Whoever says an account there has everybody in it looked at.
    #[must_use]
    pub fn reviews(&self) -> mpsc::UnboundedSender<AccountKey> {
        self.narrowed.clone()
    }

    fn try_take(&self, key: &GateKey, value: Option<&[u8]>) -> Result<(), NotTaken> {
        let mut known = self.known.write().expect("no holder panics");
        let Known { gate, signers, .. } = &mut *known;
        match (key, value) {
            (GateKey::Record(account), Some(value)) => {
                if gate.take_record(account, value, signers)? {
                    // At the end of the process nobody listens any more.
                    let _ = self.narrowed.send(account.clone());
                }
                Ok(())
            }
            (GateKey::Keys(account), Some(value)) => gate.take_keys(account, value, &self.own),
            (GateKey::Record(account), None) => {
                gate.drop_record(account);
                Ok(())
            }
            (GateKey::Keys(account), None) => {
                gate.drop_keys(account);
                Ok(())
            }
        }
    }

    /// What the bucket does not have is said to other replicas until it does.
    fn note_unkept(&self, key: &GateKey, taken: &Result<(), NotTaken>, value: Option<&Bytes>, source: Source) {
        let GateKey::Record(account) = key else { return };
        let mut unkept = self.unkept.lock().expect("no holder panics");
        match (source, taken, value) {
            (Source::Heard, Ok(()), Some(value)) => drop(unkept.insert(account.clone(), value.clone())),
            // The bucket has it, or something newer, or nothing any more.
            (Source::Bucket, Ok(()), _) => drop(unkept.remove(account)),
            // The bucket is behind what was heard, perhaps by an earlier process.
            (Source::Bucket, Err(NotTaken::Earlier { .. }), _) => {
                if let Some(newer) = self.copy.find(key) {
                    unkept.insert(account.clone(), newer);
                }
            }
            (Source::Heard | Source::Bucket, _, _) => {}
        }
    }

    /// Whether it was taken. What is not good waits until something else has changed.
    fn take(&self, key: &GateKey, value: Option<Bytes>, source: Source) -> bool {
        let name = key.text();
        let taken = self.try_take(key, value.as_deref());
        self.note_unkept(key, &taken, value.as_ref(), source);
        let mut refused = self.refused.lock().expect("no holder panics");
        match (taken, value) {
            (Ok(()), _) => {
                refused.remove(&name);
                true
            }
            (Err(error), value) => {
                add(&self.metrics.records_refused, 1);
                warn!(key = %name, error = %Chain(&error), "what the gate's bucket says is not taken");
                if let Some(value) = value.filter(|_| refused.len() < REFUSED_MOST) {
                    refused.insert(name, value);
                }
                false
            }
        }
    }

    /// Takes what was refused before and is good now: an authority that another account had, a signing key that is known
    /// by now.
    fn take_refused(&self) -> Vec<(GateKey, Option<Bytes>)> {
        let mut taken = Vec::new();
        loop {
            let waiting = self.refused.lock().expect("no holder panics").clone();
            let before = taken.len();
            for (name, value) in waiting {
                let Some(key) = GateKey::parse(&name) else { continue };
                if self.try_take(&key, Some(&value)).is_ok() {
                    self.refused.lock().expect("no holder panics").remove(&name);
                    info!(key = %name, "what was not taken before is good now");
                    taken.push((key, Some(value)));
                }
            }
            if taken.len() == before {
                return taken;
            }
        }
    }

    /// Takes entries of the bucket, and keeps them for the next start.
    async fn take_all(&self, entries: impl IntoIterator<Item = (String, Option<Bytes>)>, source: Source) {
        let _taking = self.taking.lock().await;
        let mut kept = Vec::new();
        for (name, value) in entries {
            let Some(key) = GateKey::parse(&name) else {
                add(&self.metrics.records_refused, 1);
                warn!(key = name, "the gate's bucket has a key that means nothing");
                continue;
            };
            if self.take(&key, value.clone(), source) {
                kept.push((key, value));
            }
        }
        kept.extend(self.take_refused());
        self.count();
        self.keep(kept).await;
    }

    async fn keep(&self, entries: Vec<(GateKey, Option<Bytes>)>) {
        let copy = self.copy.clone();
        let kept = tokio::task::spawn_blocking(move || copy.keep(&entries)).await;
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %Chain(&error), "the copy of the gate's bucket is not up to date"),
            Err(error) => warn!(error = %Chain(&error), "the copy of the gate's bucket is not up to date"),
        }
    }

    fn count(&self) -> usize {
        let count = self.known.read().expect("no holder panics").gate.len();
        self.metrics.accounts.set(i64::try_from(count).unwrap_or(i64::MAX));
        count
    }

    fn set_current(&self, is_current: bool) {
        self.known.write().expect("no holder panics").is_current = is_current;
        self.metrics.bucket_watched.set(i64::from(is_current));
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
                    self.set_current(false);
                    if let Err(error) = ended {
                        trouble.begin(Chain(error.as_ref()).to_string());
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Ends when the bucket is to be read anew. After a lost connection a bucket may be another one, which the library's
    /// watch does not see.
    async fn watch(&self, bus: &Bus, trouble: &mut Trouble, backoff: &mut Backoff) -> anyhow::Result<()> {
        let mut losses = bus.losses();
        losses.mark_unchanged();
        let (entries, mut watch) = bus.watch_bucket(GATE_BUCKET, READ_LIMIT).await?;
        self.take_all(entries.into_iter().map(|entry| (entry.key, entry.value)), Source::Bucket).await;
        self.set_current(true);
        self.read.send_replace(true);
        trouble.end();
        backoff.reset();
        loop {
            let entry = tokio::select! {
                entry = watch.next() => entry?.context("it ended")?,
                Ok(()) = losses.changed() => anyhow::bail!("the connection was lost"),
                () = self.again.notified() => return Ok(()),
            };
            self.take_all([(entry.key, entry.value)], Source::Bucket).await;
        }
    }

    /// Hears records on their way to the bucket, and from other replicas, until `stop`: of an account that is known here, what is
    /// said counts at once, and also while the bucket takes nothing. Without a quorum of servers somebody is put out like
    /// that, and stays so.
    ///
    /// # Errors
    /// When they cannot be listened for.
    pub async fn hear(&self, bus: Bus, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let (mut said, mut told) = (bus.listen(SAID_RECORDS).await?, bus.listen(RECORDS).await?);
        loop {
            let message = tokio::select! {
                message = heart.while_waiting(async {
                    tokio::select! {
                        message = said.next() => message,
                        message = told.next() => message,
                    }
                }) => message,
                () = stop.cancelled() => return Ok(()),
            };
            // A removal has no body: of that, and of accounts and keys that are new, only the bucket tells.
            if let Some(account) = self.newer(&message.body) {
                self.take_all([(GateKey::Record(account).text(), Some(message.body))], Source::Heard).await;
            }
        }
    }

    /// The account of a record that is good, newer than what is known of it, and names no key that is not here.
    fn newer(&self, body: &[u8]) -> Option<AccountKey> {
        let known = self.known.read().expect("no holder panics");
        let record = read_gate_record(std::str::from_utf8(body).ok()?, &known.signers).ok()?;
        known.gate.can_follow(&record).then_some(record.account)
    }

    /// Says what was heard and is not in the bucket, as long as it is not, until `stop`: a replica that was cut off when it was
    /// said hears it when it is back.
    ///
    /// # Errors
    /// Never: what cannot be said now is said again.
    pub async fn pass_on(&self, bus: Bus, gatekeeper: &str, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(SAY_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subject = record_subject(gatekeeper);
        loop {
            tokio::select! {
                _ = ticks.tick() => heart.beat(),
                () = stop.cancelled() => return Ok(()),
            }
            let unkept: Vec<Bytes> = self.unkept.lock().expect("no holder panics").values().cloned().collect();
            for record in unkept {
                if let Err(error) = bus.publish(&subject, record).await {
                    debug!(error = %Chain(&error), "other replicas do not hear what the bucket has not kept");
                }
            }
        }
    }

    /// Reads the roots and the operator's token again now and then, until `stop`: an authority or a signing key that is
    /// rotated is known without a start, and what a dropped key has signed is forgotten.
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
                    trouble.end();
                    if self.trust(trust, signers) {
                        info!("the operator has other signing keys: reading all records again");
                        let _taking = self.taking.lock().await;
                        let taken = self.take_refused();
                        self.count();
                        self.keep(taken).await;
                        self.again.notify_one();
                    }
                }
                Err(error) => drop(trouble.begin(Chain(error.as_ref()).to_string())),
            }
        }
    }

    /// Whether other keys sign now.
    fn trust(&self, trust: Trust, signers: BTreeSet<String>) -> bool {
        let mut known = self.known.write().expect("no holder panics");
        known.trust = trust;
        if known.signers == signers {
            return false;
        }
        known.gate.drop_foreign(&signers);
        known.signers = signers;
        true
    }
}
