//! `cargo xtask up`: builds the product and becomes it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::cargo::{Failure, Profile, build_product};

/// Returns only when something failed: on success this process is the product from here on, with its signals, its
/// terminal and its exit code, and no wrapper that could die first.
pub(crate) fn run(args: &[OsString]) -> Result<(), Failure> {
    let bulkhead = build_product(&Profile::dev())?.bulkhead;
    let error = Command::new(&bulkhead).arg("up").args(args).exec();
    Err(Failure::new(format!("start {}: {error}", bulkhead.display())))
}
