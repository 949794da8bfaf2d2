//! Each malformed message is there once as a dead letter, with its reason, and nothing else is.

use anyhow::Context;
use bulkhead_bus::bundle;
use sqlx::PgPool;

use super::{Books, Evidence};
use crate::chaos::ledger::ExpectedLetter;
use crate::chaos::world::LEDGER;

/// Letters that a poller with a wrong clock may cause; anything else is a fault of ours.
const CLOCK_REASONS: [&str; 3] = ["slot_in_future", "slot_too_old", "bad_start"];
/// Of a letter's payload, so much is shown.
const SHOWN_CHARS: usize = 200;

#[derive(Debug)]
struct Letter {
    reason: String,
    /// What of it is text.
    payload: String,
}

impl Letter {
    fn is(&self, expected: &ExpectedLetter) -> bool {
        self.reason == expected.reason && self.payload.contains(&expected.mark)
    }

    fn shown(&self) -> String {
        let payload: String = self.payload.chars().take(SHOWN_CHARS).collect();
        format!("{}: {payload}", self.reason)
    }
}

async fn found(witness: &PgPool, evidence: &Evidence) -> anyhow::Result<Vec<Letter>> {
    let sql = "select d.reason, d.payload from everywhere.dead_letter d
               join platform.tenant t using (tenant_id)
               where t.slug = $1 and d.received_at >= to_timestamp($2::float8 / 1000)";
    let found: Vec<(String, Vec<u8>)> = sqlx::query_as(sql)
        .bind(evidence.tenant.slug())
        .bind(evidence.before.since_ms as f64)
        .fetch_all(witness)
        .await
        .context("read dead letters")?;
    let letter = |(reason, payload): (String, Vec<u8>)| {
        // Of a bundle, what it unpacks to; nothing else of ours begins like one.
        let payload = bundle::unpack(&payload).unwrap_or(payload);
        let payload = String::from_utf8_lossy(&payload).into_owned();
        Letter { reason, payload }
    };
    Ok(found.into_iter().map(letter).collect())
}

pub(super) async fn hold(witness: &PgPool, evidence: &Evidence, books: &mut Books) -> anyhow::Result<()> {
    let found = found(witness, evidence).await?;
    books.dead_letters = found.len();
    let (own, other): (Vec<_>, Vec<_>) = found.into_iter().partition(|letter| letter.payload.contains(LEDGER));
    for expected in &evidence.record.letters {
        let times = own.iter().filter(|letter| letter.is(expected)).count();
        if times != 1 {
            books.problems.push(format!("{expected:?} is there {times} times"));
        }
    }
    let is_expected =
        |letter: &&Letter| evidence.record.letters.iter().filter(|expected| letter.is(expected)).count() == 1;
    let unexpected: Vec<String> = own.iter().filter(|letter| !is_expected(letter)).map(Letter::shown).collect();
    books.note("a dead letter of the ledger is none that is expected", &unexpected);
    let is_ours = |letter: &&Letter| !(evidence.has_wrong_clock && CLOCK_REASONS.contains(&letter.reason.as_str()));
    let honest: Vec<String> = other.iter().filter(is_ours).map(Letter::shown).collect();
    books.note("an honest poller's result is dead-lettered", &honest);
    Ok(())
}
