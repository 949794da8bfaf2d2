//! A disk that is full, or gets full at any step of an onboarding.

use std::path::Path;

use anyhow::{Context, ensure};
use bulkhead_testkit::deployment::program;
use bulkhead_tests::mounting::{mounting_shell, say_skipped};
use bulkhead_tests::operator::Operator;

/// What happens on the small disk, which holds what provisioning writes; the servers and the database are the real ones. An
/// onboarding begins with so many free pages of 4 KiB, more each time, until there are enough.
const STORY: &str = r#"set -eu
mount -t tmpfs -o size=32m,mode=0700 tmpfs "$DISK"
cd "$HOME_FOLDER"
KEPT="nsc pki tenants journal intake pushed plans gate secrets"
for name in $KEPT platform.toml core; do [ ! -e "$name" ] || cp -a "$name" "$DISK"; done
cd "$DISK"
sums() { find nsc tenants -type f ! -name lock ! -path "*intake-1*" ! -path "*/$1*" -exec sha256sum {} + | sort; }
free=0
while [ $free -le 400 ]; do
  slug="full-$free"
  dd if=/dev/zero of=ballast bs=4k 2>/dev/null || true
  truncate -s "-$((free * 4096))" ballast
  sums "$slug" > "$OUT/before"
  code=0
  "$BULKHEAD" --home "$DISK" --json tenant add "$slug" > "$OUT/printed" 2> "$OUT/said-$free" || code=$?
  rm ballast
  sums "$slug" > "$OUT/after"
  comm -23 "$OUT/before" "$OUT/after" >> "$OUT/lost"
  echo "$free $code $(wc -l < "$OUT/printed")" >> "$OUT/codes"
  "$BULKHEAD" --home "$DISK" --json tenant add "$slug" --if-absent > "$OUT/again" 2>&1 || { cat "$OUT/again"; exit 3; }
  [ $code -ne 0 ] || break
  free=$((free + STEP))
done
"$BULKHEAD" --home "$DISK" push >&2
"$BULKHEAD" --home "$DISK" nsc check
"$BULKHEAD" --home "$DISK" validate
find . -name ".*.new"
for name in $KEPT; do [ ! -e "$name" ] || cp -a "$name" "$HOME_FOLDER"; done
"#;

/// So many more pages each time.
const STEP: &str = "7";

/// What a failure says of what is left.
const LEFT: [&str; 3] = ["what had been done is undone", "is half added: say", "No space left"];

pub(crate) async fn a_full_disk_in_the_middle_of_an_onboarding(operator: &Operator<'_>) -> anyhow::Result<()> {
    let Some(mut command) = mounting_shell(STORY) else {
        say_skipped("a full disk in the middle of an onboarding");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let (disk, out) = (folder.path().join("disk"), folder.path().join("out"));
    std::fs::create_dir_all(&disk)?;
    std::fs::create_dir_all(&out)?;
    command.env("DISK", &disk).env("OUT", &out).env("HOME_FOLDER", operator.home).env("STEP", STEP);
    command.env("BULKHEAD", program("bulkhead")?);
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("run unshare")?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{said}\n{}", read(&out, "codes"));
    ensure!(!said.contains(".new"), "files that were not finished are left: {said}");
    ensure!(read(&out, "lost").is_empty(), "a failure has changed others: {}", read(&out, "lost"));
    let codes = read(&out, "codes");
    let rows: Vec<Vec<&str>> = codes.lines().map(|line| line.split(' ').collect()).collect();
    let (last, failed) = rows.split_last().context("an onboarding was tried")?;
    ensure!(last[1] == "0" && failed.len() > 2, "it never failed, or always: {codes}");
    let mut steps = std::collections::BTreeSet::new();
    for row in failed {
        let said = read(&out, &format!("said-{}", row[0]));
        ensure!(row[1] == "1" && row[2] == "0", "{row:?}: {said}");
        ensure!(said.contains("No space left") && LEFT.iter().any(|words| said.contains(words)), "{row:?}: {said}");
        steps.extend(LEFT.iter().position(|words| said.contains(words)));
    }
    ensure!(steps.len() > 1, "it was always the same step: {codes}");
    for row in rows {
        let slug = format!("full-{}", row[0]);
        let state = operator.state_of(&slug).await?.context("it was completed")?;
        ensure!(state.0 == "active", "{slug} is {}", state.0);
    }
    Ok(())
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap_or_default()
}
