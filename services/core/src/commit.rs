//! One transaction for the shares of many tenants: everything of it is stored, or nothing, and it is counted as it is
//! stored, so that the books balance: rows that came in are inserted, replaced, duplicates or dead letters.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead_bus::header::Sequence;
use bulkhead_bus::{PollerName, SiteName, Tenant, TenantId};
use bulkhead_store::{Store, StoreError, TenantTx, isolation_of, within};
use time::Date;

use crate::precedence::{Candidate, merged};
use crate::store::{self, Columns, Counts, DeadLetter};

/// How long one transaction may take: beyond what the database allows a statement, so that it speaks first if it can.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// A batch that is stored: who sent it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub site: SiteName,
    pub poller: PollerName,
    pub sequence: Option<Sequence>,
}

/// One tenant's part of a transaction, as it is gathered.
#[derive(Debug, Clone)]
pub struct Share {
    pub tenant: Tenant,
    pub rows: Vec<Candidate>,
    pub seen: Vec<Seen>,
    pub dead: Vec<DeadLetter>,
}

/// What a transaction is made of. Ordered, so that two writers take tenants in one order and cannot wait for each other.
#[derive(Debug, Clone, Default)]
pub struct Shares(BTreeMap<TenantId, Share>);

/// One tenant's part of a transaction as it is sent.
#[derive(Debug, Clone)]
struct ReadyShare {
    tenant: Tenant,
    came: usize,
    oldest_slot_ms: Option<i64>,
    days: BTreeSet<Date>,
    rows: Columns,
    batches: u64,
    /// One row a poller, in one order, whatever order the batches came in.
    seen: BTreeMap<(SiteName, PollerName), Option<Sequence>>,
    dead: Vec<DeadLetter>,
}

/// A transaction that only waits to be sent: whoever writes it has nothing to work out, and the database waits for nobody.
#[derive(Debug, Clone, Default)]
pub struct Ready(Vec<ReadyShare>);

impl Shares {
    /// The share of a tenant, empty at first.
    pub fn of(&mut self, tenant: &Tenant) -> &mut Share {
        let empty = || Share { tenant: tenant.clone(), rows: vec![], seen: vec![], dead: vec![] };
        self.0.entry(tenant.id).or_insert_with(empty)
    }

    /// Whose shares there are.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.0.values().map(|share| &share.tenant)
    }

    /// Works out what is sent.
    #[must_use]
    pub fn ready(self) -> Ready {
        Ready(self.0.into_values().map(Share::ready).collect())
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Share {
    fn ready(self) -> ReadyShare {
        let Self { tenant, rows, seen, dead } = self;
        let (came, batches) = (rows.len(), number(seen.len()));
        let mut furthest: BTreeMap<(SiteName, PollerName), Option<Sequence>> = BTreeMap::new();
        for batch in seen {
            let sequence = furthest.entry((batch.site, batch.poller)).or_default();
            *sequence = (*sequence).max(batch.sequence);
        }
        let oldest_slot_ms = rows.iter().map(|row| row.measured.slot_ms).min();
        let days = store::days_of(&rows);
        ReadyShare {
            tenant,
            came,
            oldest_slot_ms,
            days,
            rows: Columns::of(merged(rows)),
            batches,
            seen: furthest,
            dead,
        }
    }
}

impl Ready {
    /// How many rows came, those of one slot included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.iter().map(|share| share.came).sum()
    }

    /// The oldest slot of each share that has rows.
    pub fn oldest_slots_ms(&self) -> impl Iterator<Item = i64> {
        self.0.iter().filter_map(|share| share.oldest_slot_ms)
    }
}

/// Writes shares and remembers which days have a partition.
#[derive(Debug, Clone)]
pub struct Writer {
    store: Store,
    /// By schema, as the tenant's plan has it.
    days: BTreeSet<(Cow<'static, str>, Date)>,
}

impl Writer {
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, days: BTreeSet::new() }
    }

    /// Believes in no partition any more: retention may have taken one away.
    pub fn forget_days(&mut self) {
        self.days.clear();
    }

    /// Stores everything or nothing.
    ///
    /// # Errors
    /// When the database is away or refuses something; then nothing is stored, unless the commit itself failed. A
    /// database that says nothing at all is away after `WRITE_LIMIT`.
    pub async fn write(&mut self, shares: &Ready) -> Result<Counts, StoreError> {
        within("write results", WRITE_LIMIT, self.write_all(shares)).await
    }

    async fn write_all(&mut self, shares: &Ready) -> Result<Counts, StoreError> {
        for share in &shares.0 {
            self.ensure_days(share).await?;
        }
        let mut shares = shares.0.iter();
        let Some(first) = shares.next() else { return Ok(Counts::default()) };
        let mut tx = self.store.begin(&first.tenant).await?;
        let mut total = write_share(&mut tx, first).await?;
        for share in shares {
            tx.switch_to(&share.tenant).await?;
            total.add(write_share(&mut tx, share).await?);
        }
        tx.commit().await?;
        Ok(total)
    }

    async fn ensure_days(&mut self, share: &ReadyShare) -> Result<(), StoreError> {
        let schema = isolation_of(&share.tenant.plan).schema_of(&share.tenant.slug);
        for &day in &share.days {
            if self.days.contains(&(schema.clone(), day)) {
                continue;
            }
            let mut tx = self.store.begin(&share.tenant).await?;
            store::ensure_partition(&mut tx, day).await?;
            tx.commit().await?;
            self.days.insert((schema.clone(), day));
        }
        Ok(())
    }
}

async fn write_share(tx: &mut TenantTx, share: &ReadyShare) -> Result<Counts, StoreError> {
    let tenant = &share.tenant;
    let written = store::write_results(tx, tenant, &share.rows).await?;
    let buried = store::put_dead_letters(tx, tenant, &share.dead).await?;
    store::mark_seen(tx, tenant, &share.seen).await?;
    let counts = Counts {
        batches: share.batches,
        inserted: written.inserted,
        replaced: written.replaced,
        duplicates: number(share.came) - written.inserted - written.replaced + buried.known,
        dead_letters: buried.new,
        not_kept: buried.counted,
    };
    // Last, because every writer of this tenant waits for this row.
    store::add_counts(tx, tenant, counts).await?;
    Ok(counts)
}
