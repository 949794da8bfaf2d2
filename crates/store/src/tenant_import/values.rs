//! Whether incoming rows say what this release can read: the database would take more, and whoever asks for them could not.

use bulkhead_bus::payload::{CheckKind, Outcome, Reason};
use bulkhead_bus::{CheckName, PollerName, SiteName};
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::provisioning::{ProvisioningError, failed};
use crate::tenant_rows::count;

type IsKnown = fn(&str) -> bool;

/// Columns of words and names.
const WORDS: [(&str, &str, IsKnown); 17] = [
    ("result", "outcome", is_word::<Outcome>),
    ("result", "kind", is_word::<CheckKind>),
    ("result", "reason", is_word::<Reason>),
    ("result", "check_name", is_name::<CheckName>),
    ("result", "vantage", is_name::<SiteName>),
    ("result", "poller", is_name::<PollerName>),
    ("check_state", "outcome", is_word::<Outcome>),
    ("check_state", "kind", is_word::<CheckKind>),
    ("check_state", "reason", is_word::<Reason>),
    ("check_state", "check_name", is_name::<CheckName>),
    ("check_state", "vantage", is_name::<SiteName>),
    ("check_state", "poller", is_name::<PollerName>),
    ("poller_seen", "site", is_name::<SiteName>),
    ("poller_seen", "poller", is_name::<PollerName>),
    ("check_definition", "name", is_name::<CheckName>),
    ("check_definition", "kind", is_word::<CheckKind>),
    ("member_event", "site", is_name::<SiteName>),
];
/// What holds for every row.
const RULES: [(&str, &str); 7] = [
    (
        "result",
        "isfinite(slot) and isfinite(started_at) and isfinite(received_at) and revision >= 0
         and coalesce(latency_us between 0 and 4294967295, true)",
    ),
    ("check_state", "isfinite(slot) and isfinite(since) and coalesce(latency_us between 0 and 4294967295, true)"),
    ("poller_seen", "isfinite(last_batch_at)"),
    ("dead_letter", "isfinite(received_at) and delivered >= 0"),
    (
        "check_definition",
        "isfinite(created_at) and isfinite(changed_at) and revision >= 1 and jsonb_typeof(definition) = 'object'",
    ),
    ("member_event", "isfinite(at) and revision >= 0"),
    ("ingest_count", "least(batches, results, replaced, duplicates, dead_letters) >= 0"),
];

fn is_word<T: DeserializeOwned>(text: &str) -> bool {
    serde_json::from_value::<T>(text.into()).is_ok()
}

fn is_name<T: std::str::FromStr>(text: &str) -> bool {
    text.parse::<T>().is_ok()
}

/// # Errors
/// When a row says what nobody could have stored here.
pub(super) async fn check_values(connection: &mut PgConnection) -> Result<(), ProvisioningError> {
    for (table, column, is_known) in WORDS {
        let sql = format!("select distinct {column} from incoming_{table} where {column} is not null");
        let found = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await;
        let found: Vec<String> = found.map_err(failed("look at incoming rows"))?;
        if let Some(bad) = found.iter().find(|text| !is_known(text)) {
            let value = bad.chars().take(60).collect();
            return Err(ProvisioningError::UnknownValue { table: table.to_owned(), column: column.to_owned(), value });
        }
    }
    for (table, rule) in RULES {
        let rows = count(connection, &format!("incoming_{table}"), &format!("not ({rule})")).await?;
        if rows > 0 {
            return Err(ProvisioningError::BadRows { table: table.to_owned(), rows });
        }
    }
    Ok(())
}
