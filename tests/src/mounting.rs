//! Whether small file systems can be mounted here, and how: each in a mount namespace of its own, so that nothing is left.

use std::io::Write;
use std::process::Command;

/// Root mounts as it is; an ordinary user may where the kernel lets users have namespaces.
const WAYS: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];

/// A command that runs a shell script which may mount; `None` where nobody lets us.
#[must_use]
pub fn mounting_shell(script: &str) -> Option<Command> {
    let shell = |way: &[&str], script: &str| {
        let mut command = Command::new("unshare");
        command.args(way).args(["sh", "-c", script]);
        command
    };
    let may_mount = |way: &&&[&str]| {
        let tried = shell(way, "mount -t tmpfs tmpfs /mnt").output();
        tried.is_ok_and(|output| output.status.success())
    };
    WAYS.iter().find(may_mount).map(|way| shell(way, script))
}

/// Says what was left out, past the test runner, which keeps what passing tests print to itself.
pub fn say_skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: small disks need the right to mount: run this test as root");
}
