//! Cargo and the programs it builds, run with their output where the person who asked can see it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use serde_json::Value;

/// The packages of the product: `bulkhead` and the processes.
const PRODUCT: [&str; 6] = [
    "bulkhead-accounts",
    "bulkhead-core",
    "bulkhead-gatekeeper",
    "bulkhead-poller",
    "bulkhead-poller-dispatch",
    "bulkhead-registry",
];

/// Why a command ended badly, and the code to end with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }
}

/// The code a shell would report: a child that a signal ended has none of its own.
fn code_of(status: ExitStatus) -> u8 {
    let signalled = || status.signal().and_then(|signal| u8::try_from(128 + signal).ok());
    status.code().and_then(|code| u8::try_from(code).ok()).or_else(signalled).unwrap_or(1)
}

pub(crate) fn cargo() -> Command {
    Command::new("cargo")
}

/// Runs a command with inherited input and output.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|error| Failure::new(format!("start {}: {error}", shown(command))))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure { message: format!("{} ended with {status}", shown(command)), code: code_of(status) })
}

/// Runs a command for what it prints; what it says on standard error stays visible.
pub(crate) fn output_of(command: &mut Command) -> Result<String, Failure> {
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().map_err(|error| Failure::new(format!("start {}: {error}", shown(command))))?;
    if !output.status.success() {
        return Err(Failure {
            message: format!("{} ended with {}", shown(command), output.status),
            code: code_of(output.status),
        });
    }
    String::from_utf8(output.stdout).map_err(|_| Failure::new(format!("{} printed no UTF-8", shown(command))))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Which build to use, taken from the arguments that cargo itself takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) args: Vec<OsString>,
    /// The folder in the target directory.
    folder: String,
}

impl Profile {
    pub(crate) fn dev() -> Self {
        Self { args: Vec::new(), folder: "debug".to_owned() }
    }

    pub(crate) fn named(name: &str) -> Self {
        let folder = match name {
            "dev" | "test" => "debug",
            "release" | "bench" => "release",
            other => other,
        };
        Self { args: vec!["--profile".into(), name.into()], folder: folder.to_owned() }
    }
}

/// What was built, and from where.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) bulkhead: PathBuf,
    /// The root of the workspace.
    pub(crate) root: PathBuf,
}

/// Builds every program of the product in one go.
pub(crate) fn build_product(profile: &Profile) -> Result<Product, Failure> {
    let packages = PRODUCT.iter().flat_map(|package| ["--package", package]);
    // The programs only: what tests need besides is built by `cargo test`.
    run(cargo().args(["build", "--locked", "--bins"]).args(packages).args(&profile.args))?;
    let text = output_of(cargo().args(["metadata", "--locked", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value =
        serde_json::from_str(&text).map_err(|error| Failure::new(format!("read cargo metadata: {error}")))?;
    // Only cargo knows: the folder may come from CARGO_TARGET_DIR or from any configuration file.
    let target = folder_in(&metadata, "target_directory")?;
    Ok(Product {
        bulkhead: target.join(&profile.folder).join("bulkhead"),
        root: folder_in(&metadata, "workspace_root")?,
    })
}

/// A folder that `cargo metadata` names.
pub(crate) fn folder_in(metadata: &Value, key: &str) -> Result<PathBuf, Failure> {
    let folder = metadata[key].as_str().map(PathBuf::from);
    folder.ok_or_else(|| Failure::new(format!("cargo metadata names no {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_passes_its_code_on() {
        for (script, code) in [("exit 7", 7), ("kill -TERM $$", 143), ("exit 255", 255)] {
            let failure = run(Command::new("sh").args(["-c", script])).expect_err(script);
            assert_eq!(failure.code, code, "{script}");
        }
        assert!(run(Command::new("sh").args(["-c", "exit 0"])).is_ok());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let failure = run(&mut Command::new("no-such-program-here")).expect_err("nothing to run");
        assert!(failure.message.contains("no-such-program-here"), "{failure}");
    }

    #[test]
    fn output_is_only_read_from_a_success() {
        assert_eq!(output_of(Command::new("sh").args(["-c", "printf x"])).expect("runs"), "x");
        assert_eq!(output_of(Command::new("sh").args(["-c", "printf x; exit 3"])).expect_err("fails").code, 3);
        assert!(output_of(Command::new("sh").args(["-c", r"printf '\377'"])).is_err());
    }

    #[test]
    fn profiles_are_found_where_cargo_puts_them() {
        for (name, folder) in [("dev", "debug"), ("test", "debug"), ("release", "release"), ("small", "small")] {
            assert_eq!(Profile::named(name).folder, folder);
        }
    }
}
