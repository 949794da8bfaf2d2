//! `cargo xtask chaos`: builds the product and the program that breaks it, and becomes that program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::cargo::{Failure, Profile, build_product, cargo, run as run_command};
use crate::settings::{TOOLS_DIR, tools_folder};

/// Its small file systems are mounted in a namespace of their own, so that none is left behind however it ends.
const NAMESPACE: [&str; 3] = ["--mount", "--propagation", "private"];

/// Returns only when something failed.
pub(crate) fn run(args: &[OsString]) -> Result<(), Failure> {
    let product = build_product(&Profile::dev())?;
    run_command(cargo().args(["build", "--locked", "--package", "bulkhead-tests", "--bin", "bulkhead-chaos"]))?;
    let program = product.bulkhead.with_file_name("bulkhead-chaos");
    let mut command = if may_unshare() {
        let mut command = Command::new("unshare");
        command.args(NAMESPACE).arg(&program).arg("--small-disks");
        command
    } else {
        Command::new(&program)
    };
    let error = command.args(args).env(TOOLS_DIR, tools_folder(&product.root)).exec();
    Err(Failure::new(format!("start {}: {error}", program.display())))
}

/// Only root may; for others the program itself says what it leaves out.
fn may_unshare() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(NAMESPACE).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}
