//! Writes leases and static information, each only if nothing has changed since it was decided about. What this replica has
//! seen is tried first; when that is out of date, whoever decides about writes is asked.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::MemberKey;
use bulkhead_bus::members::{INFO_BUCKET, LEASE_BUCKET};
use bulkhead_runtime::{Bus, Chain, ConditionalWrite, Heart, RequestError, Stop, WriteError};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::warn;

use crate::document::{InfoDoc, LeaseDoc, LostDoc, decode, encode};
use crate::lease::Verdict;
use crate::members::{Event, Member};
use crate::metrics::Metrics;
use crate::view::View;

const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// Others may write the same key meanwhile; more often than that within one request they do not.
const TRIES: usize = 8;

/// Why something is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("read what is kept")]
    Read(#[source] RequestError),
    #[error("write what is kept")]
    Write(#[source] WriteError),
    #[error("others wrote {0} at the same time, again and again")]
    Contended(MemberKey),
}

/// How a request for a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// With this revision.
    Granted(LeaseDoc, u64),
    /// As before, with this revision.
    Repeated(LeaseDoc, u64),
    Refused(Verdict),
}

#[derive(Clone)]
pub struct Keeper {
    pub bus: Bus,
    pub view: View,
    pub metrics: Arc<Metrics>,
}

/// A document and the revision that its key has.
type Found<T> = (Option<T>, u64);

impl Keeper {
    fn seen(&self, key: &MemberKey) -> Member {
        self.view.look(|members, _, _| members.get(key).cloned()).unwrap_or_default()
    }

    async fn read<T: DeserializeOwned>(&self, bucket: &str, key: &MemberKey) -> Result<Found<T>, KeepError> {
        let entry = self.bus.read_key(bucket, &key.to_string()).await.map_err(KeepError::Read)?;
        Ok(entry.map_or((None, 0), |entry| (entry.value.as_deref().and_then(decode), entry.revision)))
    }

    /// `None` when the key has changed meanwhile.
    async fn write<T: serde::Serialize>(
        &self,
        (bucket, key): (&str, &MemberKey),
        document: &T,
        expected: u64,
        ttl: Option<Duration>,
    ) -> Result<Option<u64>, KeepError> {
        let key = key.to_string();
        let write = ConditionalWrite { bucket, key: &key, value: encode(document), expected, ttl };
        match self.bus.write_if(write, WRITE_LIMIT).await {
            Ok(revision) => Ok(Some(revision)),
            Err(WriteError::Changed { .. }) => {
                self.metrics.writes_contended.inc();
                Ok(None)
            }
            Err(error @ WriteError::Store(_)) => Err(KeepError::Write(error)),
        }
    }

    /// Decides about a lease and keeps what was decided.
    ///
    /// # Errors
    /// When the hub does not answer, or others write the same lease all the time.
    pub async fn decide(
        &self,
        key: &MemberKey,
        decide: impl Fn(Option<&LeaseDoc>, Option<&InfoDoc>) -> Verdict,
    ) -> Result<Kept, KeepError> {
        let seen = self.seen(key);
        let (mut lease, mut info) = ((seen.lease, seen.lease_revision), seen.info);
        let mut is_certain = false;
        for _ in 0..TRIES {
            match decide(lease.0.as_ref(), info.as_ref()) {
                Verdict::Grant(granted) => {
                    let ttl = granted.is_live().then(|| granted.class.ttl());
                    if let Some(revision) = self.write((LEASE_BUCKET, key), &granted, lease.1, ttl).await? {
                        return Ok(Kept::Granted(granted, revision));
                    }
                }
                // Only what is kept may refuse anybody: what was seen here may be older.
                refused if is_certain => {
                    return Ok(match (refused, lease) {
                        (Verdict::Repeated, (Some(lease), revision)) => Kept::Repeated(lease, revision),
                        (refused, _) => Kept::Refused(refused),
                    });
                }
                Verdict::Repeated | Verdict::Fenced { .. } | Verdict::Replayed | Verdict::NoLease => {}
            }
            lease = self.read(LEASE_BUCKET, key).await?;
            if lease.0.is_none() {
                info = self.read(INFO_BUCKET, key).await?.0;
            }
            is_certain = true;
        }
        Err(KeepError::Contended(key.clone()))
    }

    /// Changes what is static of a member; `None` of `change` leaves it as it is.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub async fn change_info(
        &self,
        key: &MemberKey,
        change: impl Fn(Option<&InfoDoc>) -> Option<InfoDoc>,
    ) -> Result<(), KeepError> {
        let seen = self.seen(key);
        let mut info = (seen.info, seen.info_revision);
        for _ in 0..TRIES {
            let Some(changed) = change(info.0.as_ref()) else { return Ok(()) };
            if self.write((INFO_BUCKET, key), &changed, info.1, None).await?.is_some() {
                return Ok(());
            }
            info = self.read(INFO_BUCKET, key).await?;
        }
        Err(KeepError::Contended(key.clone()))
    }

    /// Writes losses down until `stop`: the server's own word is gone after a minute.
    ///
    /// # Errors
    /// Never: what cannot be written is left.
    pub async fn note_losses(self, mut lost: mpsc::Receiver<Event>, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        loop {
            let event = tokio::select! {
                Some(event) = heart.while_waiting(lost.recv()) => event,
                () = stop.cancelled() => return Ok(()),
            };
            let noted = self.change_info(&event.key, |info| {
                let info = info?;
                let ttl_ms = i64::try_from(info.class.ttl().as_millis()).unwrap_or(i64::MAX);
                let lost = LostDoc { at_ms: event.at_ms, renewed_ms: event.at_ms - ttl_ms };
                // Another replica has done so, or it is back.
                let is_done = info.lost.is_some() || info.registered_ms > event.at_ms;
                (!is_done).then(|| InfoDoc { lost: Some(lost), ..info.clone() })
            });
            if let Err(error) = noted.await {
                warn!(error = %Chain(&error), "a loss is not written down");
            }
        }
    }
}
