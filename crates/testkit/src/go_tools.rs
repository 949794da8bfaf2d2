//! Programs in Go that we compare ourselves with, built once from `tests/interop` and `tests/probers` for each state of their
//! sources.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use uuid::Uuid;

use crate::settings::interop_settings;

/// A program that one of our Go modules builds, in the version that its `go.mod` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoTool {
    /// Our questions to the Go library about claims.
    ClaimCheck,
    /// The official tool.
    Nsc,
    /// What Prometheus asks for checks.
    BlackboxExporter,
    /// What checks by a schedule of its own.
    Cloudprober,
}

impl GoTool {
    fn name(self) -> &'static str {
        match self {
            Self::ClaimCheck => "claimcheck",
            Self::Nsc => "nsc",
            Self::BlackboxExporter => "blackbox_exporter",
            Self::Cloudprober => "cloudprober",
        }
    }

    /// Those that are measured have a module each, so that one does not choose the other's dependencies.
    fn module(self) -> PathBuf {
        let folder = match self {
            Self::ClaimCheck | Self::Nsc => "interop",
            Self::BlackboxExporter => "probers/blackbox",
            Self::Cloudprober => "probers/cloudprober",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(folder)
    }

    fn package(self) -> &'static str {
        match self {
            Self::ClaimCheck => "./claimcheck",
            Self::Nsc => "github.com/nats-io/nsc/v2",
            Self::BlackboxExporter => "github.com/prometheus/blackbox_exporter",
            Self::Cloudprober => "github.com/cloudprober/cloudprober/cmd/cloudprober",
        }
    }
}

/// Where such a program is; built below `$BULKHEAD_TOOLS_DIR/go` when it is not there yet. `None`, after a
/// loud line on stderr, when there is no Go: the caller's test then ends. `BULKHEAD_INTEROP=required` makes that an error.
///
/// # Errors
/// When the program cannot be built, or Go is missing and required.
pub fn go_tool(name: GoTool) -> anyhow::Result<Option<PathBuf>> {
    let settings = interop_settings()?;
    let folder = settings.tools_folder.join("go");
    let module = name.module();
    let program = folder.join(format!("{}-{}", name.name(), source_id(&module, name)?));
    if program.is_file() {
        return Ok(Some(program));
    }
    if !has_go(&settings.search_path) {
        if settings.is_required {
            bail!("go is not on PATH, and BULKHEAD_INTEROP=required: install Go 1.25 or newer, or unset it");
        }
        eprintln!("SKIPPED: go is not on PATH, so nothing is compared with {}: install Go 1.25 or newer", name.name());
        return Ok(None);
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    build(&module, name, &program)?;
    Ok(Some(program))
}

fn has_go(search_path: &OsStr) -> bool {
    std::env::split_paths(search_path).any(|folder| folder.join("go").is_file())
}

/// Of everything that the program is built from; modules are fixed by `go.sum`.
fn source_id(module: &Path, name: GoTool) -> anyhow::Result<String> {
    let mut files = vec![module.join("go.mod"), module.join("go.sum")];
    if name == GoTool::ClaimCheck {
        let sources = fs::read_dir(module.join(name.name())).context("list the Go sources")?;
        for entry in sources {
            files.push(entry.context("list the Go sources")?.path());
        }
        files.sort();
    }
    let mut text = Vec::new();
    for file in files {
        text.extend(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(Uuid::new_v5(&Uuid::NAMESPACE_OID, &text).simple().to_string())
}

/// Tests are several processes: the first builds, the others wait for its lock.
fn build(module: &Path, name: GoTool, program: &Path) -> anyhow::Result<()> {
    let lock = File::create(program.with_extension("lock")).context("make the lock of a Go build")?;
    lock.lock().context("wait for another Go build")?;
    if program.is_file() {
        return Ok(());
    }
    let made = program.with_extension("new");
    let mut command = Command::new("go");
    command.current_dir(module).env("CGO_ENABLED", "0");
    command.args(["build", "-mod=readonly", "-trimpath", "-o"]).arg(&made).arg(name.package());
    let output = command.output().context("start go")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("go build {} in {}: {}: {said}", name.package(), module.display(), output.status);
    }
    fs::rename(&made, program).with_context(|| format!("put {} in place", program.display()))
}
