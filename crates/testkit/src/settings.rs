//! The only reader of the environment here: where the servers are that tests run on.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bulkhead_accounts::up::{Tools, find_tools};

/// nats-server and PostgreSQL as `bulkhead tools` finds them, on PATH or in the folder that it fetches into.
///
/// # Errors
/// When one is neither there nor can be fetched; the error names both ways out.
pub fn find_test_tools() -> anyhow::Result<Tools> {
    let search_path = env::var_os("PATH").unwrap_or_default();
    let chosen = env::var_os("BULKHEAD_TOOLS_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = chosen.unwrap_or_else(|| project.join(".bulkhead").join("tools"));
    let folder = std::path::absolute(folder).context("find the folder of fetched servers")?;
    find_tools(&search_path, &folder, &|_| {}).context("find servers to test with")
}
