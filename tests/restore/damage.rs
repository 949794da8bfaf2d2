//! Backups that are not whole, and one that was put together in the wrong order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bulkhead_accounts::backup::{ArchiveReader, ArchiveWriter, Manifest, Part, Seal};

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
