//! Small file systems of their own, so that a disk can be full without filling the machine's. They need root.
//!
//! Nothing is mounted but in a mount namespace of its own, into which the program that starts chaos puts it: so nothing is
//! left behind, however it ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

const BALLAST: &str = "ballast";
const PIECE_BYTES: usize = 64 * 1024;

/// A mounted file system.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
}

/// What deployments of this process write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disks {
    /// Small file systems: this process may mount, and is in a mount namespace of its own.
    Small,
    /// The machine's own.
    Shared,
}

impl Disk {
    /// Makes `folder` a file system of `mebibytes`.
    pub(super) fn mount(folder: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let size = format!("size={mebibytes}m,mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
        let mounted = mounted.context("run mount")?;
        let said = String::from_utf8_lossy(&mounted.stderr).into_owned();
        anyhow::ensure!(mounted.status.success(), "mount {}: {said}", folder.display());
        Ok(Self { folder: folder.to_owned() })
    }

    /// Takes every free byte.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let path = self.folder.join(BALLAST);
        let mut ballast = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let (piece, byte) = ([0_u8; PIECE_BYTES], [0_u8; 1]);
        for bytes in [&piece[..], &byte[..]] {
            while ballast.write_all(bytes).is_ok() {}
        }
        Ok(())
    }

    pub(super) fn free(&self) -> anyhow::Result<()> {
        let path = self.folder.join(BALLAST);
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Removes everything, as if the disk had been replaced.
    pub(super) fn wipe(folder: &Path) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazy: a process that is still ending may have files open. What cannot be unmounted goes with the namespace.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).output();
    }
}
