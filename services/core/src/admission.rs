//! Decides what becomes of a batch: which rows are stored, and what is dead-lettered with which reason. No I/O.

use bulkhead_bus::bundle::BundleError;
use bulkhead_bus::header::{self, AttestationError, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, DETAIL_BYTES_MAX, Measured, RESULTS_PER_BATCH_MAX, ResultBatch};
use bulkhead_bus::{
    AccountKey, Audience, CoreSubject, Guarded, PollerName, Refusal, SiteName, Tenant, TenantSnapshot, TenantSubject,
};
use bulkhead_store::{BatchKeys, Registered};
use serde_json::Value;

const DAY_MS: i64 = 86_400_000;
/// How far a poller's clock may be ahead (design section 5).
const FUTURE_MS: i64 = 5 * 60_000;

bulkhead_runtime::label! {
    /// Why something was not stored. Closed: it is a label and a column.
    pub enum DeadReason("reason") {
        ForeignSubject = "foreign_subject",
        NotDecodable = "not_decodable",
        BadHeaders = "bad_headers",
        UnknownVersion = "unknown_version",
        TooManyResults = "too_many_results",
        UnknownAccount = "unknown_account",
        TenantSuspended = "tenant_suspended",
        TenantMismatch = "tenant_mismatch",
        SenderMismatch = "sender_mismatch",
        NotForPlatform = "not_for_platform",
        Unsigned = "unsigned",
        BadSignature = "bad_signature",
        ForeignKey = "foreign_key",
        PollerRevoked = "poller_revoked",
        SlotTooOld = "slot_too_old",
        SlotInFuture = "slot_in_future",
        BadStart = "bad_start",
        DetailTooLarge = "detail_too_large",
        UnsafeText = "unsafe_text",
        NotStorable = "not_storable",
    }
}

impl DeadReason {
    /// Whether `TenantGuard` refused, and not the decoder, the signature or a rule of rows.
    #[must_use]
    pub fn is_guards(self) -> bool {
        match self {
            Self::UnknownAccount
            | Self::TenantSuspended
            | Self::TenantMismatch
            | Self::SenderMismatch
            | Self::NotForPlatform => true,
            Self::ForeignSubject
            | Self::NotDecodable
            | Self::BadHeaders
            | Self::UnknownVersion
            | Self::TooManyResults
            | Self::Unsigned
            | Self::BadSignature
            | Self::ForeignKey
            | Self::PollerRevoked
            | Self::SlotTooOld
            | Self::SlotInFuture
            | Self::BadStart
            | Self::DetailTooLarge
            | Self::UnsafeText
            | Self::NotStorable => false,
        }
    }

    fn of_refusal(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownAccount(_) => Self::UnknownAccount,
            Refusal::Suspended(_) => Self::TenantSuspended,
            Refusal::TenantMismatch { .. } | Refusal::UnknownTarget(_) => Self::TenantMismatch,
            Refusal::SenderMismatch { .. } => Self::SenderMismatch,
            Refusal::NotForPlatform => Self::NotForPlatform,
        }
    }
}

/// What was not stored, and why, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub reason: DeadReason,
    pub detail: String,
}

impl Dead {
    fn new(reason: DeadReason, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// One row of a batch that is stored without it.
#[derive(Debug, Clone)]
pub struct DeadRow {
    /// Its place in the batch.
    pub index: usize,
    pub row: Measured,
    pub dead: Dead,
}

/// A batch that passed: who sent it, what is stored and what is not.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub tenant: Tenant,
    pub site: SiteName,
    pub poller: PollerName,
    /// `None` when it was not signed and its tenant allows that.
    pub sequence: Option<Sequence>,
    pub rows: Vec<Measured>,
    pub dead_rows: Vec<DeadRow>,
}

/// What becomes of a message.
#[derive(Debug, Clone)]
pub enum Verdict {
    Admitted(Admitted),
    /// Dead-lettered for this tenant, whole.
    Dead(Tenant, Dead),
    /// Of a poller whose key cannot be read, or may have been registered a moment ago: to be decided about when it comes
    /// again. Its results are most likely good, and a dead letter is only kept as long as there is room.
    Undecided,
    /// From an account that is no tenant: perhaps not yet.
    Unclaimed(AccountKey, Dead),
    /// Not even an account: nothing of ours wrote this subject.
    Foreign(Dead),
}

impl Verdict {
    /// Why the whole message is refused, when it is.
    #[must_use]
    pub fn dead(&self) -> Option<&Dead> {
        match self {
            Self::Admitted(_) | Self::Undecided => None,
            Self::Dead(_, dead) | Self::Unclaimed(_, dead) | Self::Foreign(dead) => Some(dead),
        }
    }
}

impl Verdict {
    /// Whose rows or dead letters it adds.
    #[must_use]
    pub fn tenant(&self) -> Option<&Tenant> {
        match self {
            Self::Admitted(admitted) => Some(&admitted.tenant),
            Self::Dead(tenant, _) => Some(tenant),
            Self::Undecided | Self::Unclaimed(..) | Self::Foreign(_) => None,
        }
    }

    /// What it adds to a transaction: rows that are stored, and dead letters.
    #[must_use]
    pub fn entries(&self) -> usize {
        match self {
            Self::Admitted(admitted) => admitted.rows.len() + admitted.dead_rows.len(),
            Self::Dead(..) | Self::Unclaimed(..) | Self::Foreign(_) => 1,
            Self::Undecided => 0,
        }
    }

    /// Whether it is refused for a key that was not registered when the keys were read.
    #[must_use]
    pub fn is_of_foreign_key(&self) -> bool {
        self.dead().is_some_and(|dead| dead.reason == DeadReason::ForeignKey)
    }

    #[must_use]
    pub fn is_undecided(&self) -> bool {
        matches!(self, Self::Undecided)
    }

    /// Whose it is and why it is nobody's, when it is no tenant's.
    #[must_use]
    pub fn stranger(&self) -> Option<(Option<&AccountKey>, &Dead)> {
        match self {
            Self::Admitted(_) | Self::Dead(..) | Self::Undecided => None,
            Self::Unclaimed(account, dead) => Some((Some(account), dead)),
            Self::Foreign(dead) => Some((None, dead)),
        }
    }
}

/// A message as it came.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    pub subject: &'a str,
    pub body: &'a [u8],
    /// When the hub took it upon itself, in unix milliseconds.
    pub stored_ms: i64,
}

/// Decides about one message. `header` reads a header by name; `keys_of` gives a tenant's batch keys.
pub fn admit<'a, 'k>(
    incoming: Incoming<'_>,
    header: impl Fn(&str) -> Option<&'a str>,
    snapshot: &TenantSnapshot,
    keys_of: impl Fn(&Tenant) -> Option<&'k BatchKeys>,
    now_ms: i64,
) -> Verdict {
    let account = match CoreSubject::account_of(incoming.subject) {
        Ok(account) => account,
        Err(error) => return Verdict::Foreign(Dead::new(DeadReason::ForeignSubject, error)),
    };
    let guarded = guard(incoming, snapshot);
    let decided = guarded.and_then(|guarded| {
        let attested = attest(&guarded, incoming.body, header, keys_of)?;
        Ok((guarded, attested))
    });
    match decided {
        Ok((guarded, Attested::By(sequence))) => admitted(&guarded, Some(sequence), now_ms),
        Ok((guarded, Attested::Unsigned)) => admitted(&guarded, None, now_ms),
        Ok((_, Attested::Unknown)) => Verdict::Undecided,
        Err(dead) => match snapshot.open_tenant(&account) {
            Some(tenant) => Verdict::Dead(tenant.clone(), dead),
            None => Verdict::Unclaimed(account, dead),
        },
    }
}

/// Of a message that holds no batches that could be decided about.
#[must_use]
pub fn undecodable(subject: &str, snapshot: &TenantSnapshot, why: &BundleError) -> Verdict {
    let reason = match why {
        BundleError::Version(_) => DeadReason::UnknownVersion,
        BundleError::Packing
        | BundleError::Large(_)
        | BundleError::Short(_)
        | BundleError::Headers(_)
        | BundleError::Count => DeadReason::NotDecodable,
    };
    let dead = Dead::new(reason, why);
    match CoreSubject::account_of(subject) {
        Err(error) => Verdict::Foreign(Dead::new(DeadReason::ForeignSubject, error)),
        Ok(account) => match snapshot.open_tenant(&account) {
            Some(tenant) => Verdict::Dead(tenant.clone(), dead),
            None => Verdict::Unclaimed(account.clone(), Dead::new(DeadReason::UnknownAccount, account)),
        },
    }
}

fn guard(incoming: Incoming<'_>, snapshot: &TenantSnapshot) -> Result<Guarded<ResultBatch>, Dead> {
    let subject: CoreSubject =
        incoming.subject.parse().map_err(|error| Dead::new(DeadReason::ForeignSubject, error))?;
    let account = snapshot.account(&subject.account);
    if account.is_none() {
        return Err(Dead::new(DeadReason::UnknownAccount, format!("account {} is no tenant", subject.account)));
    }
    let batch: ResultBatch =
        serde_json::from_slice(incoming.body).map_err(|error| Dead::new(DeadReason::NotDecodable, error))?;
    if batch.version != BATCH_VERSION {
        let detail = format!("version {}: this core reads {BATCH_VERSION}", batch.version);
        return Err(Dead::new(DeadReason::UnknownVersion, detail));
    }
    if batch.results.len() > RESULTS_PER_BATCH_MAX {
        let detail = format!("{} results: at most {RESULTS_PER_BATCH_MAX} are allowed", batch.results.len());
        return Err(Dead::new(DeadReason::TooManyResults, detail));
    }
    let admitted = snapshot.admit_stored(subject, Audience::Tenants, (batch, incoming.stored_ms));
    admitted.map_err(|refusal| Dead::new(DeadReason::of_refusal(&refusal), refusal))
}

/// What a batch's signature is worth.
enum Attested {
    /// It is by the very poller that the batch names.
    By(Sequence),
    /// There is none, and the tenant allows that.
    Unsigned,
    /// It is good, and whose it is cannot be told now.
    Unknown,
}

fn attest<'a, 'k>(
    guarded: &Guarded<ResultBatch>,
    body: &[u8],
    header: impl Fn(&str) -> Option<&'a str>,
    keys_of: impl Fn(&Tenant) -> Option<&'k BatchKeys>,
) -> Result<Attested, Dead> {
    let attested =
        header::verify(header, body).map_err(|error: AttestationError| Dead::new(DeadReason::BadSignature, error))?;
    let Some(tenant) = guarded.tenant() else {
        return Err(Dead::new(DeadReason::NotForPlatform, "the platform sends no results"));
    };
    let batch = guarded.body();
    let registered = keys_of(tenant).and_then(|keys| keys.get(&(batch.site.clone(), batch.poller.clone())));
    if registered == Some(&Registered::Revoked) {
        let detail = format!("poller {}/{} is revoked", batch.site, batch.poller);
        return Err(Dead::new(DeadReason::PollerRevoked, detail));
    }
    let Some(attested) = attested else {
        if tenant.allows_unsigned {
            return Ok(Attested::Unsigned);
        }
        return Err(Dead::new(DeadReason::Unsigned, "the batch carries no signature and the tenant's plan wants one"));
    };
    match registered {
        Some(Registered::Key(key)) if *key == attested.key => return Ok(Attested::By(attested.sequence)),
        Some(Registered::Unreadable) => return Ok(Attested::Unknown),
        Some(Registered::Key(_) | Registered::Revoked) | None => {}
    }
    let detail = format!("key {} is not the active key of {}/{}", attested.key, batch.site, batch.poller);
    Err(Dead::new(DeadReason::ForeignKey, detail))
}

fn admitted(guarded: &Guarded<ResultBatch>, sequence: Option<Sequence>, now_ms: i64) -> Verdict {
    let (Some(tenant), TenantSubject::Forwarded { site, .. }) = (guarded.tenant(), guarded.subject()) else {
        return Verdict::Foreign(Dead::new(DeadReason::ForeignSubject, guarded.subject()));
    };
    let batch = guarded.body();
    let mut rows = Vec::with_capacity(batch.results.len());
    let mut dead_rows = Vec::new();
    for (index, row) in batch.results.iter().enumerate() {
        match check_row(row, tenant.retention_days, now_ms) {
            Ok(()) => rows.push(row.clone()),
            Err(dead) => dead_rows.push(DeadRow { index, row: row.clone(), dead }),
        }
    }
    Verdict::Admitted(Admitted {
        tenant: tenant.clone(),
        site: site.clone(),
        poller: batch.poller.clone(),
        sequence,
        rows,
        dead_rows,
    })
}

/// The rules for one row: its slot lies in `[now - retention, now + 5 min]`, and its detail can be stored.
fn check_row(row: &Measured, retention_days: u32, now_ms: i64) -> Result<(), Dead> {
    let oldest = now_ms - i64::from(retention_days) * DAY_MS;
    if row.slot_ms < oldest {
        let detail = format!("slot {} of {} is older than {retention_days} days", row.slot_ms, row.check);
        return Err(Dead::new(DeadReason::SlotTooOld, detail));
    }
    if row.slot_ms > now_ms + FUTURE_MS {
        let detail = format!("slot {} of {} is more than 5 minutes ahead", row.slot_ms, row.check);
        return Err(Dead::new(DeadReason::SlotInFuture, detail));
    }
    // Any number may come in: the difference of two of them need not be one.
    if row.started_ms.abs_diff(row.slot_ms) > DAY_MS.unsigned_abs() {
        let detail = format!("{} began at {}, a day or more from its slot", row.check, row.started_ms);
        return Err(Dead::new(DeadReason::BadStart, detail));
    }
    let detail_bytes = detail_bytes(row);
    if detail_bytes > DETAIL_BYTES_MAX {
        let detail = format!("detail of {} has {detail_bytes} bytes: at most {DETAIL_BYTES_MAX}", row.check);
        return Err(Dead::new(DeadReason::DetailTooLarge, detail));
    }
    if row.detail.iter().any(|(key, value)| key.contains('\0') || has_nul(value)) {
        let detail = format!("detail of {} holds a NUL character, which the database refuses", row.check);
        return Err(Dead::new(DeadReason::UnsafeText, detail));
    }
    Ok(())
}

/// How long a row's detail is as JSON.
pub(crate) fn detail_bytes(row: &Measured) -> usize {
    serde_json::to_string(&row.detail).map_or(usize::MAX, |text| text.len())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
