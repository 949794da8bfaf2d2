//! Backups that are not whole, and one that was put together in the wrong order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::backup::{ArchiveReader, ArchiveWriter, Manifest, Part, Seal};
use bulkhead_accounts::provisioning_lock::ProvisioningLock;
use bulkhead_testkit::TestDeployment;

use crate::story::{Safe, bulkhead};

/// One flipped byte: nothing is restored from it, and nothing is left.
pub(crate) async fn expect_damage_to_be_refused(safe: &Safe, backup: &Path) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(backup)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("an empty backup")? ^= 1;
    let damaged = safe.file("damaged.bulkhead");
    std::fs::write(&damaged, bytes)?;
    let home = safe.file("nothing");
    let [file, key] = [damaged, safe.key()].map(|path| path.display().to_string());
    let output = bulkhead(&home, &["restore", &file, "--identity", &key]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("damaged") && said.contains(&file), "{said}");
    assert!(!home.exists(), "something was restored");
    Ok(())
}

/// Another key, a home that is in use, and somebody else who changes the platform: each is told apart and changes nothing.
pub(crate) async fn expect_refusals(deployment: &TestDeployment, safe: &Safe, backup: &Path) -> anyhow::Result<()> {
    let other = Safe::make()?;
    let home = safe.file("nothing");
    let [file, key, wrong, next] =
        [backup.to_owned(), safe.key(), other.key(), safe.file("next.bulkhead")].map(|path| path.display().to_string());
    let refused = async |home: &Path, args: &[&str], code: i32, expected: &str| -> anyhow::Result<()> {
        let output = bulkhead(home, args).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.code() == Some(code) && said.contains(expected), "{}: {said}", output.status);
        Ok(())
    };
    refused(&home, &["restore", &file, "--identity", &wrong], 4, "is not sealed for the key").await?;
    refused(deployment.home(), &["restore", &file, "--identity", &key], 4, "is not empty").await?;
    refused(deployment.home(), &["backup", "--to", &file, "--recipient", &safe.recipient], 4, "is there already")
        .await?;
    let lock = ProvisioningLock::take(deployment.home(), Duration::ZERO)?;
    let args = ["backup", "--to", &next, "--recipient", &safe.recipient, "--lock-limit-s", "0"];
    refused(deployment.home(), &args, 1, &format!("process {} ", std::process::id())).await?;
    drop(lock);
    assert!(!home.exists() && !Path::new(&next).exists(), "something was made");
    let issued = deployment.home().join("provisioning").join("backup");
    assert!(!issued.exists(), "credentials that read the hub's streams are left");
    // What was restored only in part is not started.
    std::fs::create_dir_all(home.join("restore.unfinished"))?;
    refused(&home, &["up"], 1, "restored only in part").await
}

type Parts = BTreeMap<String, (u32, Vec<u8>)>;

fn read(safe: &Safe, file: &Path) -> anyhow::Result<(Manifest, Parts)> {
    let mut parts = Parts::new();
    let manifest = ArchiveReader::open(file, &safe.opening())?.read(&mut |name, part| {
        match part {
            Part::Begin { mode } => {
                parts.insert(name.to_owned(), (mode, vec![]));
            }
            Part::Piece(piece) => {
                if let Some((_, bytes)) = parts.get_mut(name) {
                    bytes.extend_from_slice(piece);
                }
            }
            Part::End => {}
        }
        Ok(())
    })?;
    Ok((manifest, parts))
}

/// The backup `earlier` with the streams of `later`.
pub(crate) fn with_streams_of(safe: &Safe, earlier: &Path, later: &Path) -> anyhow::Result<PathBuf> {
    let (manifest, mut parts) = read(safe, earlier)?;
    let (newer, from) = read(safe, later)?;
    parts.extend(from.into_iter().filter(|(name, _)| name.starts_with("streams/")));
    let file = safe.file("wrong.bulkhead");
    let mut archive = ArchiveWriter::create(&file, &Seal::Recipients(vec![safe.recipient.clone()]))?;
    for (name, (mode, bytes)) in &parts {
        archive.add(name, *mode, bytes)?;
    }
    archive.finish(Manifest { streams: newer.streams, ..manifest })?;
    Ok(file)
}
