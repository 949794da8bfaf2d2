//! Servers that are too old are passed over with a note, and where no other can be had the error names both ways out.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use anyhow::Context;
use bulkhead_testkit::find_test_tools;
use serde_json::Value;

use crate::program::{run, search_path};

const OLD_NATS: (&str, &str) = ("nats-server", "nats-server: v2.10.7");
const OLD_POSTGRES: (&str, &str) = ("postgres", "postgres (PostgreSQL) 12.22");

fn write_program(folder: &Path, (name, prints): (&str, &str)) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\necho '{prints}'\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A folder with a server that is too old.
fn old(server: (&str, &str)) -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    write_program(folder.path(), server)?;
    // What has no initdb beside it is no installation of PostgreSQL.
    write_program(folder.path(), ("initdb", "initdb (PostgreSQL) 12.22"))?;
    Ok(folder)
}

/// Finds servers with these folders as PATH and nothing fetched yet.
async fn find(folders: &[&Path]) -> anyhow::Result<Output> {
    let tools = tempfile::tempdir()?;
    let path = std::env::join_paths(folders)?;
    run("bulkhead", &["tools", "--json", "--tools-dir", &tools.path().display().to_string()], &path).await
}

fn rows(output: &Output) -> anyhow::Result<Vec<Value>> {
    let text = std::str::from_utf8(&output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Ended well, passed over the old server with a note that names both versions, and uses the good one.
fn check_passed_over(output: &Output, server: &str, versions: [&str; 2]) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let is_note = |line: &str| line.starts_with("note: ") && versions.iter().all(|version| line.contains(version));
    assert!(said.lines().any(is_note), "no note names {versions:?}: {said}");
    let rows = rows(output)?;
    let used = rows.iter().find(|row| row["tool"] == server).with_context(|| format!("{server} in {rows:?}"))?;
    assert_ne!(used["version"], versions[0], "{used}");
    Ok(())
}

fn check_both_ways_out(output: &Output, versions: [&str; 2]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [versions[0], versions[1], "on PATH", "pip"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn an_old_server_is_passed_over_or_named_with_both_ways_out() -> anyhow::Result<()> {
    let (nats, postgres) = (old(OLD_NATS)?, old(OLD_POSTGRES)?);
    let good: OsString = search_path()?;
    let good: Vec<_> = std::env::split_paths(&good).collect();
    let with_good =
        |first: &Path| -> Vec<_> { std::iter::once(first.to_owned()).chain(good.iter().cloned()).collect() };

    let folders = with_good(nats.path());
    let found = find(&folders.iter().map(AsRef::as_ref).collect::<Vec<_>>()).await?;
    check_passed_over(&found, "nats-server", ["2.10.7", "2.14.4"])?;
    let folders = with_good(postgres.path());
    let found = find(&folders.iter().map(AsRef::as_ref).collect::<Vec<_>>()).await?;
    check_passed_over(&found, "postgres", ["12.22.0", "15.0.0"])?;

    // Nothing else on PATH, nothing fetched, no pip: a good one can only be in the usual folders of this machine.
    let tools = find_test_tools()?;
    let usual = |path: &Path| path.starts_with("/usr") || path.starts_with("/opt");
    let found = find(&[nats.path()]).await?;
    if usual(&tools.nats_server.path) {
        check_passed_over(&found, "nats-server", ["2.10.7", "2.14.4"])?;
    } else {
        check_both_ways_out(&found, ["2.10.7", "2.14.4"]);
    }
    let nats_folder = tools.nats_server.path.parent().context("nats-server's folder")?;
    let found = find(&[postgres.path(), nats_folder]).await?;
    if usual(&tools.postgres.path) {
        check_passed_over(&found, "postgres", ["12.22.0", "15.0.0"])?;
    } else {
        check_both_ways_out(&found, ["12.22.0", "15.0.0"]);
    }
    Ok(())
}
