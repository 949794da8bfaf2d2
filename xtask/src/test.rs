//! `cargo xtask test`: everything that the tests run on is built and found first, so that no test waits for it.

use std::ffi::OsString;
use std::process::Command;

use crate::cargo::{Failure, Profile, build_product, cargo, run as run_command};
use crate::settings::{TOOLS_DIR, tools_folder};

pub(crate) fn run(args: &[OsString]) -> Result<(), Failure> {
    let product = build_product(&profile_of(args))?;
    let tools = tools_folder(&product.root);
    run_command(Command::new(product.bulkhead).arg("tools").env(TOOLS_DIR, &tools))?;
    let mut test = cargo();
    test.args(["test", "--locked"]).env(TOOLS_DIR, &tools);
    if !names_packages(args) {
        test.arg("--workspace");
    }
    run_command(test.args(args))
}

/// What comes before `--` is for cargo; the rest is for the tests.
fn cargo_args(args: &[OsString]) -> impl Iterator<Item = &str> {
    args.iter().map(|arg| arg.to_str().unwrap_or_default()).take_while(|arg| *arg != "--")
}

/// The profile that cargo will test with, so that the programs are built with the same one.
fn profile_of(args: &[OsString]) -> Profile {
    let mut profile = Profile::dev();
    let mut words = cargo_args(args);
    while let Some(word) = words.next() {
        let name = match word {
            "--release" | "-r" => Some("release"),
            "--profile" => words.next(),
            _ => word.strip_prefix("--profile="),
        };
        profile = name.map_or(profile, Profile::named);
    }
    profile
}

/// `--workspace` beside a package would test everything.
fn names_packages(args: &[OsString]) -> bool {
    let is_package = |word: &str| {
        let is_short = word.starts_with("-p") && !word.starts_with("--");
        is_short || word == "--package" || word.starts_with("--package=")
    };
    cargo_args(args).any(is_package)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn programs_are_built_with_the_profile_of_the_tests() {
        for (line, expected) in [
            ("", Profile::dev()),
            ("story -- --nocapture", Profile::dev()),
            ("--release", Profile::named("release")),
            ("-r -p x", Profile::named("release")),
            ("--profile small", Profile::named("small")),
            ("--profile=bench x", Profile::named("bench")),
            ("-- --release", Profile::dev()),
        ] {
            assert_eq!(profile_of(&words(line)), expected, "{line}");
        }
    }

    #[test]
    fn a_named_package_replaces_the_workspace() {
        for (line, expected) in [
            ("-p bulkhead-bus", true),
            ("-pbulkhead-bus", true),
            ("--package bulkhead-bus", true),
            ("--package=bulkhead-bus", true),
            ("--profile small", false),
            ("story -- -p", false),
            ("", false),
        ] {
            assert_eq!(names_packages(&words(line)), expected, "{line}");
        }
    }
}
