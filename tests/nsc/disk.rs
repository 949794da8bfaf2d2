//! A full disk in the middle of a change: the store stays as it was, and the same change works once there is room.

use std::path::Path;

use anyhow::{Context, ensure};
use bulkhead_testkit::deployment::program;
use bulkhead_tests::mounting::{mounting_shell, say_skipped};

use super::own_home;

/// What happens on the small disk. In a mount namespace of its own nothing of it outlives the shell.
const STORY: &str = r#"set -eu
mount -t tmpfs -o size=1m,mode=0700 tmpfs "$DISK"
cp -a "$HOME_FOLDER/." "$DISK"
cd "$DISK"
dd if=/dev/zero of=ballast bs=4k 2>/dev/null || true
sums() { find nsc -type f ! -name lock -exec sha256sum {} + | sort; find nsc -type d | sort; }
sums > "$OUT/before"
if "$BULKHEAD" --home "$DISK" nsc restore acme-corp > "$OUT/said" 2>&1; then echo "written on a full disk"; exit 3; fi
if "$BULKHEAD" --home "$DISK" operator rotate-key add >> "$OUT/said" 2>&1; then echo "written on a full disk"; exit 4; fi
sums > "$OUT/after"
rm ballast
"$BULKHEAD" --home "$DISK" nsc check
"$BULKHEAD" --home "$DISK" nsc restore acme-corp
"$BULKHEAD" --home "$DISK" operator rotate-key add
"$BULKHEAD" --home "$DISK" nsc check
"#;

#[test]
fn a_full_disk_leaves_the_store_as_it_was() -> anyhow::Result<()> {
    let Some(mut command) = mounting_shell(STORY) else {
        say_skipped("a full disk under the operator's store");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let (home, store) = own_home(folder.path())?;
    // The first change has made the folders that every later one needs.
    store.restore_account("acme-corp", 1_000)?;
    let (disk, out) = (folder.path().join("disk"), folder.path().join("out"));
    std::fs::create_dir_all(&disk)?;
    std::fs::create_dir_all(&out)?;
    command.env("DISK", &disk).env("OUT", &out).env("HOME_FOLDER", &home);
    let output = command.env("BULKHEAD", program("bulkhead")?).output().context("run unshare")?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let read = |name: &str| std::fs::read_to_string(Path::new(&out).join(name)).unwrap_or_default();
    ensure!(output.status.success(), "{said}\n{}", read("said"));
    assert_eq!(read("after"), read("before"));
    ensure!(read("said").matches("No space left").count() == 2, "{}", read("said"));
    Ok(())
}
