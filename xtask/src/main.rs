//! `cargo xtask up | test | chaos | bench | ci | tidy`: builds, runs and checks this workspace.
//!
//! It needs nothing but the standard library and a JSON reader, so that it compiles in seconds. It holds no part of the
//! product: `up` is a build followed by the product's own `bulkhead up`.

mod bench;
mod cargo;
mod chaos;
mod ci;
mod postgres;
mod settings;
mod test;
mod tidy;
mod up;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use cargo::Failure;

const USAGE: &str = "usage: cargo xtask <command>
  up [args..]     build the product and run `bulkhead up` with these arguments
  test [args..]   build the product, find or fetch the servers, and run `cargo test` with these arguments
  chaos [args..]  break a deployment while results flow and add up the books; --runs N --seed S, --help for more
  bench [args..]  measure the product, built for release: ingest, flood, accounts; --help for more
  ci              everything that a change must pass: format, lints, tidy, docs, the database's tests on a second
                  PostgreSQL, all tests
  tidy [--write]  check the rules that no compiler checks; --write renders the generated docs anew";

/// The code for a command line that makes no sense, as in sysexits.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let Err(failure) = dispatch(&args) else { return ExitCode::SUCCESS };
    eprintln!("xtask: {failure}");
    ExitCode::from(failure.code)
}

fn dispatch(args: &[OsString]) -> Result<(), Failure> {
    let Some((command, rest)) = args.split_first() else { return Err(usage("a command is missing")) };
    match (command.to_str(), rest) {
        (Some("--help" | "-h" | "help"), []) => {
            show_usage();
            Ok(())
        }
        (Some("up"), rest) => up::run(rest),
        (Some("test"), rest) => test::run(rest),
        (Some("chaos"), rest) => chaos::run(rest),
        (Some("bench"), rest) => bench::run(rest),
        (Some("ci"), []) => ci::run(),
        (Some("tidy"), []) => tidy::run(tidy::Mode::Check),
        (Some("tidy"), [flag]) if flag == "--write" => tidy::run(tidy::Mode::Write),
        (Some("ci" | "tidy"), [other, ..]) => Err(usage(&format!("{other:?} is not an argument of {command:?}"))),
        _ => Err(usage(&format!("{command:?} is not a command"))),
    }
}

#[expect(clippy::print_stdout, reason = "what was asked for is no complaint")]
fn show_usage() {
    println!("{USAGE}");
}

fn usage(what: &str) -> Failure {
    Failure { message: format!("{what}\n{USAGE}"), code: EXIT_USAGE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_help_gets_it() {
        for word in ["--help", "-h", "help"] {
            assert!(dispatch(&[word.into()]).is_ok(), "{word}");
        }
    }

    #[test]
    fn what_is_not_a_command_is_refused_with_the_usage() {
        for line in ["", "go", "tidy --fix", "ci now", "tidy --write --write"] {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let failure = dispatch(&args).expect_err(line);
            assert_eq!(failure.code, EXIT_USAGE, "{line}");
            assert!(failure.message.contains("usage: cargo xtask"), "{line}");
        }
    }
}
