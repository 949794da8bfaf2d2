//! A leaf whose file system is nearly full, and then full: what a server says then, and what it does not say.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::patient::Patient;

const SIZE: &str = "size=64m";

/// A small file system of its own for a leaf's store, until it is dropped.
struct SmallDisk<'a>(&'a Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} is still mounted", self.0.display());
    }
}

/// `None` where this user may not mount.
fn mount(folder: &Path) -> Option<SmallDisk<'_>> {
    let mut command = Command::new("mount");
    let mounted = command.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(folder).output();
    mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(folder))
}

pub(crate) async fn a_leaf_on_a_full_disk(patient: &mut Patient) -> anyhow::Result<()> {
    let folder = patient.home("sites/acme-corp/oslo/js");
    patient.deployment.up.leaves[0].1.stop().await?;
    let Some(disk) = mount(&folder) else {
        eprintln!("NOT TESTED: a leaf on a full disk, because this user may not mount a file system");
        patient.deployment.up.leaves[0].1.restart()?;
        patient.is_well(&[]).await?;
        return Ok(());
    };
    patient.deployment.up.leaves[0].1.restart()?;
    // 64 MiB are too little by the rule, whatever is on them.
    let subject = "leaf acme-corp/oslo";
    let said = patient.is_well(&["links", "streams"]).await?;
    assert_eq!(said.level("leaf-answers", "acme-corp/oslo")?, "ok");
    let said = patient.ask(&["disks"]).await?;
    assert_eq!(said.level("disk-space", subject)?, "fail");
    assert_eq!(said.level("disk-promise", subject)?, "warn", "it may write more than there is");
    assert_eq!(said.level("jetstream-writes", "leaf-acme-corp-oslo")?, "ok");

    fill(&folder)?;
    let said = patient.has(&["disks"], &["fail jetstream-writes leaf-acme-corp-oslo"]).await?;
    let found = said.of("jetstream-writes", "leaf-acme-corp-oslo")?["found"].to_string();
    assert!(found.contains("no space left"), "{found}");

    // Room alone does not mend it; a start does.
    std::fs::remove_file(folder.join("filler")).context("make room")?;
    patient.has(&["disks"], &["fail jetstream-writes leaf-acme-corp-oslo"]).await?;
    patient.deployment.up.leaves[0].1.stop().await?;
    drop(disk);
    patient.deployment.up.leaves[0].1.restart()?;
    patient.is_well(&[]).await?;
    Ok(())
}

/// Writes until nothing more fits.
fn fill(folder: &Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(folder.join("filler"))?;
    for block in [vec![0; 1 << 20], vec![0; 512]] {
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}
