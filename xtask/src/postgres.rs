//! The database's tests once more, on the packaged PostgreSQL, where all other tests run on another one: the programs that cargo
//! has built are run as they are, so that nothing is built twice.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cargo::{Failure, Profile, build_product, cargo, output_of, run as run_command};
use crate::settings::{TOOLS_DIR, tools_folder};

/// Packages whose tests need a PostgreSQL and no other process, by their folders.
const PACKAGES: [&str; 2] = ["crates/store", "services/core"];
/// Read by the tests: which PostgreSQL they take.
const TEST_POSTGRES: (&str, &str) = ("BULKHEAD_TEST_POSTGRES", "packaged");

pub(crate) fn run() -> Result<(), Failure> {
    let product = build_product(&Profile::dev())?;
    let tools = tools_folder(&product.root);
    let look = |args: &[&str]| {
        let text =
            output_of(Command::new(&product.bulkhead).args(["tools", "--json"]).args(args).env(TOOLS_DIR, &tools))?;
        postgres_version(&text)
    };
    let (found, packaged) = (look(&[])?, look(&["--packaged"])?);
    if found == packaged {
        eprintln!("== NOTE: all tests run on PostgreSQL {found} ONLY: no other one is on PATH or in the usual folders");
        return Ok(());
    }
    eprintln!("== the database's tests run on PostgreSQL {packaged} now, and with all others on {found} later");
    let mut build = cargo();
    build.args(["test", "--workspace", "--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
    let programs = test_programs(&output_of(&mut build)?, &product.root);
    if programs.is_empty() {
        return Err(Failure::new(format!("cargo has built no tests of {}", PACKAGES.join(" and "))));
    }
    for program in programs {
        eprintln!("     Running {} on PostgreSQL {packaged}", program.path.display());
        let mut test = Command::new(&program.path);
        test.current_dir(&program.folder).env(TOOLS_DIR, &tools).env(TEST_POSTGRES.0, TEST_POSTGRES.1);
        run_command(&mut test)?;
    }
    Ok(())
}

/// The version of PostgreSQL in what `bulkhead tools --json` printed.
fn postgres_version(text: &str) -> Result<String, Failure> {
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let version = rows
        .into_iter()
        .find(|row| row["tool"] == "postgres")
        .and_then(|row| row["version"].as_str().map(str::to_owned));
    version.ok_or_else(|| Failure::new(format!("bulkhead tools names no PostgreSQL: {text}")))
}

#[derive(Debug, PartialEq, Eq)]
struct TestProgram {
    path: PathBuf,
    /// Where cargo would run it.
    folder: PathBuf,
}

/// The test programs of our packages in what cargo says of a build.
fn test_programs(messages: &str, root: &Path) -> Vec<TestProgram> {
    let program = |message: Value| -> Option<TestProgram> {
        let path = PathBuf::from(message["executable"].as_str()?);
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
        let is_ours = PACKAGES.iter().any(|package| folder == root.join(package));
        (is_test && is_ours).then_some(TestProgram { path, folder })
    };
    messages.lines().filter_map(|line| serde_json::from_str(line).ok()).filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_postgres() {
        let text =
            "{\"tool\":\"nats-server\",\"version\":\"2.15.1\"}\n{\"tool\":\"postgres\",\"version\":\"18.6.0\"}\n";
        assert_eq!(postgres_version(text).expect("it is there"), "18.6.0");
        assert!(postgres_version("{\"tool\":\"nats-server\",\"version\":\"2.15.1\"}").is_err());
    }

    #[test]
    fn only_test_programs_of_the_packages_are_run() {
        let line = |folder: &str, kind: &str, executable: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/r/{folder}/Cargo.toml\",\
                 \"target\":{{\"kind\":[\"{kind}\"]}},\"executable\":{executable}}}\n"
            )
        };
        let text = [
            line("crates/store", "lib", "null"),
            line("crates/store", "lib", "\"/t/unit\""),
            line("crates/store", "test", "\"/t/matrix\""),
            line("services/core", "bin", "\"/t/core\""),
            line("services/poller", "test", "\"/t/poller\""),
            "no JSON\n".to_owned(),
        ];
        let expected = TestProgram { path: "/t/matrix".into(), folder: "/r/crates/store".into() };
        assert_eq!(test_programs(&text.concat(), Path::new("/r")), [expected]);
    }
}
