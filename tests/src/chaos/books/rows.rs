//! Every acknowledged row of the ledger is there once and as it was sent, and no other row of the ledger is.

use std::collections::BTreeMap;

use anyhow::Context;
use sqlx::PgPool;

use super::{Books, Evidence};
use crate::chaos::ledger::{Sent, Slot};
use crate::chaos::world::LEDGER;

/// What is stored in each slot of the ledger: one row each, if all is well.
pub(super) type Stored = BTreeMap<Slot, Vec<Row>>;

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    outcome: String,
    latency_us: Option<i64>,
    /// Everything else, which is the same for each row of a tenant's ledger.
    rest: String,
}

impl Row {
    fn is_as_sent(&self, sent: &Sent, rest: &str) -> bool {
        self.outcome == sent.outcome && self.latency_us == Some(sent.latency_us) && self.rest == rest
    }
}

/// Each row that is the ledger's by its poller or by its check, of this run by its slot or by when it came.
pub(super) async fn stored(witness: &PgPool, evidence: &Evidence) -> anyhow::Result<Stored> {
    let sql = "select r.check_name, (extract(epoch from r.slot) * 1000)::int8, r.outcome, r.latency_us,
                      format('%s/%s %s started %s ms after its slot, reason %L, generation %s, revision %s, island %s, attested %s, detail %L',
                             r.vantage, r.poller, r.kind, (extract(epoch from r.started_at - r.slot) * 1000)::int8,
                             r.reason, r.generation, r.revision, r.island, r.attested, r.detail)
               from everywhere.result r join platform.tenant t using (tenant_id)
               where t.slug = $1 and (r.poller = $2 or starts_with(r.check_name, $2 || '-'))
                 and (r.slot >= to_timestamp($3::float8 / 1000) or r.received_at >= to_timestamp($3::float8 / 1000))";
    let rows: Vec<(String, i64, String, Option<i64>, String)> = sqlx::query_as(sql)
        .bind(evidence.tenant.slug())
        .bind(LEDGER)
        .bind(evidence.before.since_ms as f64)
        .fetch_all(witness)
        .await
        .context("read what is stored")?;
    let mut stored = Stored::new();
    for (check, slot, outcome, latency_us, rest) in rows {
        stored.entry((check, slot)).or_default().push(Row { outcome, latency_us, rest });
    }
    Ok(stored)
}

pub(super) fn hold(evidence: &Evidence, stored: &Stored, books: &mut Books) {
    let (record, rest) = (&evidence.record, evidence.own.ledger_row());
    let is_lost = |slot: &&Slot| !stored.contains_key(*slot);
    let acked = record.rows.iter().filter(|(_, sent)| sent.is_acked).map(|(slot, _)| slot);
    let lost: Vec<&Slot> = acked.filter(is_lost).collect();
    books.note("acknowledged results are not stored", &lost);
    let stranger: Vec<&Slot> = stored.keys().filter(|slot| !record.rows.contains_key(*slot)).collect();
    books.note("is stored and was never sent", &stranger);
    let more: Vec<&Slot> = stored.iter().filter(|(_, rows)| rows.len() > 1).map(|(slot, _)| slot).collect();
    books.note("is stored more than once", &more);
    let altered = stored.iter().flat_map(|(slot, rows)| rows.iter().map(move |row| (slot, row)));
    let altered: Vec<_> = altered
        .filter_map(|(slot, row)| {
            let sent = record.rows.get(slot)?;
            (!row.is_as_sent(sent, &rest)).then_some((slot, sent, row))
        })
        .collect();
    books.note("is stored otherwise than it was sent", &altered);
}
