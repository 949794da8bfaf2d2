//! Migrations as squawk judges them: none locks a table for long or breaks the services of the release before.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context;
use bulkhead_testkit::squawk;

/// What does not apply here, each with its reason.
const RULES_NOT_OURS: [(&str, &str); 3] = [
    ("require-lock-timeout", "whoever runs migrations sets it for each of them (crates/store/src/migrations.rs)"),
    ("require-statement-timeout", "one that fills a table may take as long as the table is long"),
    ("prefer-bigint-over-int", "versions, days and row numbers of a batch, none of which grows without end"),
];
/// Applied before squawk judged them: an applied file is never changed.
const APPLIED_BEFORE: [&str; 1] = ["0002_watch_tenants.sql"];

fn judge(program: &Path, files: &[PathBuf]) -> anyhow::Result<Output> {
    let mut command = Command::new(program);
    command.args(["--pg-version", "15", "--assume-in-transaction", "--no-error-on-unmatched-pattern"]);
    for (rule, _) in RULES_NOT_OURS {
        command.args(["--exclude", rule]);
    }
    command.args(files).output().context("run squawk")
}

fn migrations() -> anyhow::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut files = Vec::new();
    for set in ["platform", "tenant"] {
        for entry in std::fs::read_dir(folder.join(set)).context("list migrations")? {
            files.push(entry?.path());
        }
    }
    files.retain(|file| !APPLIED_BEFORE.iter().any(|applied| file.ends_with(applied)));
    files.sort();
    Ok(files)
}

#[test]
fn migrations_expand_before_they_contract() -> anyhow::Result<()> {
    let Some(program) = squawk()? else { return Ok(()) };
    let files = migrations()?;
    anyhow::ensure!(files.len() >= 5, "{files:?}");
    let judged = judge(&program, &files)?;
    let said = String::from_utf8_lossy(&judged.stdout);
    anyhow::ensure!(judged.status.success(), "{said}");
    // Control: each of these is refused, by the rule that it breaks.
    let folder = tempfile::tempdir()?;
    for (sql, rule) in [
        ("alter table site drop column created_at;", "ban-drop-column"),
        ("alter table site rename column name to title;", "renaming-column"),
        ("alter table result alter column latency_us type text;", "changing-column-type"),
        ("alter table site add constraint one check (name <> '');", "constraint-missing-not-valid"),
        ("create index by_time on result (received_at);", "require-concurrent-index-creation"),
    ] {
        let file = folder.path().join("0009_bad.sql");
        std::fs::write(&file, sql)?;
        let judged = judge(&program, std::slice::from_ref(&file))?;
        let said = String::from_utf8_lossy(&judged.stdout);
        anyhow::ensure!(!judged.status.success() && said.contains(rule), "{sql}: {said}");
    }
    Ok(())
}
