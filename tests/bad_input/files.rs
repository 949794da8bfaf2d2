//! Files of a stopped deployment, damaged one by one: `up` names the file and the way out, destroys nothing, and goes on
//! from where it was once the file is back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::program::Home;

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Truncate,
    Garbage,
    Remove,
    /// Everybody may read it.
    Open,
}

/// Words of a sentence that says what to do.
const WAYS_OUT: [&str; 3] = ["restore", "chmod 600", "--fresh"];
const POLLER: &str = "sites/acme-corp/oslo/pollers/p1";

/// A file as it was: what is in it, and its mode.
type Kept = (Vec<u8>, u32);

fn keep(path: &Path) -> anyhow::Result<Kept> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok((bytes, fs::metadata(path)?.permissions().mode() & 0o777))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() { files_below(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// What cannot be made again: keys, certificates of authorities, accounts, passwords.
fn keep_all(home: &Path) -> anyhow::Result<BTreeMap<PathBuf, Kept>> {
    let mut files = Vec::new();
    for folder in ["nsc", "pki", "secrets"] {
        files_below(&home.join(folder), &mut files)?;
    }
    files.push(home.join(POLLER).join("batch.nk"));
    // The book of what was issued grows with each certificate that a start issues before it finds the damage.
    files.retain(|path| path.exists() && !path.starts_with(home.join("pki/issued")));
    files.into_iter().map(|path| keep(&path).map(|kept| (path, kept))).collect()
}

fn harm(path: &Path, harm: Harm) -> anyhow::Result<()> {
    let (bytes, _) = keep(path)?;
    match harm {
        Harm::Truncate => fs::write(path, &bytes[..bytes.len() / 2])?,
        Harm::Garbage => fs::write(path, b"\x00\xff nothing of ours")?,
        Harm::Remove => fs::remove_file(path)?,
        Harm::Open => fs::set_permissions(path, fs::Permissions::from_mode(0o644))?,
    }
    Ok(())
}

/// A stopped deployment with stored results.
struct Stopped {
    home: Home,
    faults: Vec<String>,
}

impl Stopped {
    fn path(&self) -> PathBuf {
        self.home.path()
    }

    /// Harms `file`, and expects that `up` fails, names it and a way out, and leaves everything else as it is.
    async fn check_refused(&mut self, file: &str, how: Harm) -> anyhow::Result<()> {
        let path = self.path().join(file);
        let kept = keep(&path)?;
        let owner = fs::metadata(&path)?;
        harm(&path, how)?;
        // So that the end of a log is this start's.
        fs::remove_dir_all(self.path().join("logs"))?;
        let before = keep_all(&self.path())?;
        let (code, said) = self.home.up().await?;
        let about = format!("{how:?} {file}");
        let error = said.split("bulkhead: ").last().unwrap_or_default();
        if code != Some(1) {
            self.faults.push(format!("{about}: exit code {code:?}: {}", said.lines().last().unwrap_or_default()));
            // A database that ran has written since: what was kept is too old to be put back.
            anyhow::ensure!(!file.starts_with("postgres"), "{}", self.faults.join("\n"));
        }
        // A database's own log names files as it sees them.
        let shown = file.strip_prefix("postgres/data/").unwrap_or(file);
        if !error.contains(shown) {
            self.faults.push(format!("{about}: the file is not named: {error}"));
        }
        if !WAYS_OUT.iter().any(|way| error.contains(way)) {
            self.faults.push(format!("{about}: no way out is named: {error}"));
        }
        self.check_unchanged(&about, &before)?;
        let processes = self.home.processes()?;
        if !processes.is_empty() {
            self.faults.push(format!("{about}: left running: {processes:?}"));
        }
        fs::write(&path, &kept.0)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(kept.1))?;
        chown(&path, Some(owner.uid()), Some(owner.gid())).context("give a file back")
    }

    fn check_unchanged(&mut self, about: &str, before: &BTreeMap<PathBuf, Kept>) -> anyhow::Result<()> {
        let after = keep_all(&self.path())?;
        for path in before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>() {
            if before.get(path) != after.get(path) {
                self.faults.push(format!("{about}: {} was written, made or removed", path.display()));
            }
        }
        // What was changed is put back, so that one fault is not reported again with each case behind it.
        for (path, (bytes, mode)) in before {
            fs::write(path, bytes)?;
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
        }
        for path in after.keys().filter(|path| !before.contains_key(*path)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Harms `file`, and expects that `up` starts all the same.
    async fn check_survived(&mut self, file: &str, how: Harm) -> anyhow::Result<()> {
        harm(&self.path().join(file), how)?;
        let (code, said) = self.home.up().await?;
        if code != Some(0) {
            self.faults.push(format!("{how:?} {file}: exit code {code:?}: {said}"));
        }
        Ok(())
    }

    /// The key by which gatekeepers answer, as a file below the state folder.
    fn role_key(&self) -> anyhow::Result<String> {
        let token = fs::read_to_string(self.path().join("nsc/stores/bulkhead/accounts/sent/sent.jwt"))?;
        let claims = bulkhead_claims::decode::<bulkhead_claims::AccountBody>(&token)?;
        let role = claims.nats.signing_keys.iter().find(|key| key.role() == Some(bulkhead_bus::Role::Sentinel.name()));
        let name = format!("{}.nk", role.context("the key of SENT's role")?.key());
        let mut files = Vec::new();
        files_below(&self.path().join("nsc"), &mut files)?;
        let file = files.into_iter().find(|path| path.ends_with(&name)).context("the seed of that key")?;
        Ok(file.strip_prefix(self.path())?.display().to_string())
    }
}

/// Every harm that must stop a start.
async fn check_all_refused(stopped: &mut Stopped) -> anyhow::Result<()> {
    let account = "nsc/stores/bulkhead/accounts/acme-corp/acme-corp.jwt";
    let role_key = stopped.role_key()?;
    let batch_key = format!("{POLLER}/batch.nk");
    let boot = format!("{POLLER}/state/boot");
    for (file, how) in [
        (account, Harm::Truncate),
        (account, Harm::Garbage),
        ("nsc/stores/bulkhead/accounts/core/core.jwt", Harm::Truncate),
        ("nsc/stores/bulkhead/bulkhead.jwt", Harm::Truncate),
        (role_key.as_str(), Harm::Garbage),
        (&role_key, Harm::Remove),
        (&role_key, Harm::Open),
        // Servers seal for it: another one in its place would keep everybody out.
        ("secrets/gatekeeper.xk", Harm::Garbage),
        ("secrets/gatekeeper.xk", Harm::Remove),
        ("secrets/gatekeeper.xk", Harm::Open),
        ("pki/client-root.key", Harm::Garbage),
        // Making a new root in silence would cut off every tenant.
        ("pki/client-root.key", Harm::Remove),
        ("pki/server-root.crt", Harm::Truncate),
        ("pki/tenant-acme-corp.key", Harm::Truncate),
        (&batch_key, Harm::Garbage),
        (&batch_key, Harm::Open),
        (&boot, Harm::Garbage),
        ("secrets/postgres-superuser.password", Harm::Remove),
        ("secrets/postgres-superuser.password", Harm::Open),
        ("postgres/data/PG_VERSION", Harm::Remove),
        ("postgres/data/global/pg_control", Harm::Garbage),
    ] {
        stopped.check_refused(file, how).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_file_is_named_and_nothing_else_is_harmed() -> anyhow::Result<()> {
    let mut stopped = Stopped { home: Home::new()?, faults: vec![] };
    let before = stopped.home.list_slots().await?;
    assert!(!before.is_empty(), "nothing is stored");
    check_all_refused(&mut stopped).await?;
    // What is only remembered for convenience is made anew.
    stopped.check_survived("ports.json", Harm::Garbage).await?;
    let after = stopped.home.list_slots().await?;
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(lost.is_empty(), "old results are gone: {lost:?}");
    assert!(stopped.faults.is_empty(), "{}", stopped.faults.join("\n"));
    Ok(())
}
