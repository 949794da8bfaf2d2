//! `cargo xtask bench`: builds the product for release, and becomes the program that measures it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::cargo::{Failure, Profile, build_product, cargo, run as run_command};
use crate::settings::{TOOLS_DIR, tools_folder};

/// Returns only when something failed.
pub(crate) fn run(args: &[OsString]) -> Result<(), Failure> {
    let product = build_product(&Profile::named("release"))?;
    let build = ["build", "--locked", "--release", "--package", "bulkhead-tests", "--bin", "bulkhead-bench"];
    run_command(cargo().args(build))?;
    let program = product.bulkhead.with_file_name("bulkhead-bench");
    let tools = tools_folder(&product.root);
    let error = Command::new(&program).args(args).env(TOOLS_DIR, tools).current_dir(&product.root).exec();
    Err(Failure::new(format!("start {}: {error}", program.display())))
}
