//! `cargo xtask ci`: everything that a change must pass, cheapest first.
//!
//! The checks, the database's tests on a second PostgreSQL among them, are summed up before the tests begin, so that what
//! a passing run ends with is the test runner's own account of itself. A failing run ends with the step that failed.

use std::time::{Duration, Instant};

use crate::cargo::{Failure, cargo, run as run_command};
use crate::{postgres, test, tidy};

struct Step {
    name: &'static str,
    run: fn() -> Result<(), Failure>,
}

const CHECKS: [Step; 5] = [
    Step { name: "format", run: check_format },
    Step { name: "lints", run: check_lints },
    Step { name: "tidy", run: check_tidy },
    Step { name: "docs", run: check_docs },
    // Here, so that what all tests end with stays the end.
    Step { name: "packaged PostgreSQL", run: postgres::run },
];

const TESTS: Step = Step { name: "tests", run: run_tests };

pub(crate) fn run() -> Result<(), Failure> {
    let mut passed = Vec::new();
    for step in &CHECKS {
        passed.push((step.name, run_step(step, &passed)?));
    }
    eprintln!("{}", summary(&passed));
    run_step(&TESTS, &passed).map(|_| ())
}

fn run_step(step: &Step, passed: &[(&'static str, Duration)]) -> Result<Duration, Failure> {
    eprintln!("\n== {}", step.name);
    let start = Instant::now();
    let ended = (step.run)();
    let took = start.elapsed();
    match ended {
        Ok(()) => {
            // Nothing after the tests: their closing lines stay the last ones.
            if step.name != TESTS.name {
                eprintln!("== {} passed in {:.1} s", step.name, took.as_secs_f64());
            }
            Ok(took)
        }
        Err(failure) => {
            let message =
                format!("{}\n== {} FAILED after {:.1} s: {failure}", summary(passed), step.name, took.as_secs_f64());
            Err(Failure { message, ..failure })
        }
    }
}

fn summary(passed: &[(&'static str, Duration)]) -> String {
    if passed.is_empty() {
        return "== passed: nothing".to_owned();
    }
    let steps: Vec<String> = passed.iter().map(|(name, took)| format!("{name} {:.1} s", took.as_secs_f64())).collect();
    format!("== passed: {}", steps.join(", "))
}

fn check_format() -> Result<(), Failure> {
    run_command(cargo().args(["fmt", "--all", "--check"]))
}

fn check_lints() -> Result<(), Failure> {
    run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn check_tidy() -> Result<(), Failure> {
    tidy::run(tidy::Mode::Check)
}

fn check_docs() -> Result<(), Failure> {
    run_command(cargo().args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn run_tests() -> Result<(), Failure> {
    // All of them, so that one run tells everything that fails.
    test::run(&["--no-fail-fast".into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_step_what_passed_before_and_keeps_its_code() {
        let step =
            Step { name: "lints", run: || Err(Failure { message: "clippy ended with 101".to_owned(), code: 101 }) };
        let failure = run_step(&step, &[("format", Duration::from_millis(1500))]).expect_err("it fails");
        assert_eq!(failure.code, 101);
        assert!(failure.message.starts_with("== passed: format 1.5 s\n== lints FAILED after "), "{failure}");
        assert!(failure.message.ends_with("clippy ended with 101"), "{failure}");
    }

    #[test]
    fn the_summary_names_every_step() {
        assert_eq!(summary(&[]), "== passed: nothing");
        let steps = [("format", Duration::from_secs(1)), ("tidy", Duration::from_millis(250))];
        assert_eq!(summary(&steps), "== passed: format 1.0 s, tidy 0.2 s");
    }
}
