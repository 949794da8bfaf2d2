//! Rebuilds a platform from a backup beside the live one, looks whether it works, and removes it again.
//!
//! The copy has ports of its own and no sites, so neither is it connected to the live platform nor is anybody let in.

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_runtime::eventually;
use bulkhead_store::backup::count_rows;
use serde::Serialize;

use super::manifest::Manifest;
use super::restore::{
    Construction, RestoreError, RestoreOptions, compared_rows, counted, rebuild_database, rebuild_hub,
};
use crate::hub_state::hub_state;
use crate::up::RebuiltHub;

/// How long core may take to store what the restored streams hold.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub what: String,
    pub is_good: bool,
    pub found: String,
}

/// What a rehearsal has found.
#[derive(Debug, Clone)]
pub struct Report {
    pub manifest: Manifest,
    /// Stored results of all tenants, when core had stored what the streams held.
    pub results: i64,
    pub checks: Vec<Check>,
}

impl Report {
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.is_good)
    }
}

fn same(what: String, expected: i64, found: i64) -> Check {
    let is_good = expected == found;
    let found = if is_good { found.to_string() } else { format!("{found} instead of {expected}") };
    Check { what, is_good, found }
}

fn outcome<E: std::error::Error + 'static>(what: &str, good: String, result: Result<(), E>) -> Check {
    let (is_good, found) = match &result {
        Ok(()) => (true, good),
        Err(error) => (false, crate::reason::reason(error)),
    };
    Check { what: what.to_owned(), is_good, found }
}

/// Rehearses a restore in `options.home`, an empty folder that is removed at the end. What does not fit the backup is in
/// the report.
///
/// # Errors
/// When the backup cannot be read, or the copy does not even come up.
pub async fn rehearse(options: &RestoreOptions, announce: &dyn Fn(&str)) -> Result<Report, RestoreError> {
    // Gone at the end, whatever comes.
    let _construction = Construction::begin(&options.home)?;
    let (manifest, database) = rebuild_database(options, announce).await?;
    let rows = compared_rows(&manifest, &counted(&database).await?);
    let mut checks: Vec<Check> = rows.into_iter().map(|(what, expected, found)| same(what, expected, found)).collect();
    // Streams and accounts that do not come back end it here, with the reason.
    let mut hub = rebuild_hub(database, &manifest, announce).await?;
    checks.extend(manifest.streams.iter().map(|stream| Check {
        what: format!("batches in stream {}", stream.name),
        is_good: true,
        found: stream.messages.to_string(),
    }));
    checks.push(check_accounts(&hub, &manifest));
    announce("starting core on the copy");
    let started = hub.start_core().await;
    let is_up = started.is_ok();
    checks.push(outcome("core", "it answers".to_owned(), started));
    let mut results = manifest.results.values().sum();
    if is_up {
        let (check, after) = check_drained(&hub, &manifest).await;
        checks.push(check);
        results = after;
    }
    announce("ending and removing the copy");
    hub.stop().await.map_err(RestoreError::start)?;
    Ok(Report { manifest, results, checks })
}

/// The hub has loaded every account of the store; this says that the store has every account of the backup.
fn check_accounts(hub: &RebuiltHub, manifest: &Manifest) -> Check {
    let names: BTreeSet<String> = hub.platform.operator.account_names().into_iter().collect();
    let missing: Vec<&str> =
        manifest.accounts.iter().filter(|account| !names.contains(&account.name)).map(|a| a.name.as_str()).collect();
    let found = match missing.as_slice() {
        [] => format!("all {} are in force on every server", names.len()),
        missing => format!("missing: {}", missing.join(", ")),
    };
    Check { what: "accounts".to_owned(), is_good: missing.is_empty(), found }
}

/// What the streams held is stored by core, beside what the database had: nothing is lost between the two.
async fn check_drained(hub: &RebuiltHub, manifest: &Manifest) -> (Check, i64) {
    let drained = eventually("core storing all that the streams hold", DRAIN_LIMIT, || async {
        let states = hub_state(&hub.system, hub.size).await;
        let left = states.iter().map(|state| state.messages).max().unwrap_or(0);
        let is_silent = states.iter().any(|state| state.version.is_empty());
        if left == 0 && !is_silent { Ok(()) } else { Err(format!("{left} batches are left")) }
    });
    let drained = drained.await;
    let before: i64 = manifest.results.values().sum();
    let after: i64 = match count_rows(&hub.database_url()).await {
        Ok(counts) => counts.results.values().sum(),
        Err(error) => return (outcome("results from the streams", String::new(), Err(error)), before),
    };
    let found = format!("{} batches gave {} more results", manifest.messages(), after - before);
    let check = outcome("results from the streams", found, drained);
    (Check { is_good: check.is_good && after >= before, ..check }, after)
}
