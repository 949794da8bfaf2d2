//! `bulkhead-poller [--config FILE]` runs; `bulkhead-poller check-config [--config FILE]` only validates;
//! `bulkhead-poller enroll` makes this machine's keys and gets its certificates; `bulkhead-poller check` runs one check by
//! hand.

use std::process::ExitCode;

use bulkhead_poller::Config;
use bulkhead_poller::{check_if_asked, run, run_if_asked};
use bulkhead_runtime::Program;

fn main() -> ExitCode {
    if let Some(ended) = run_if_asked().or_else(check_if_asked) {
        return ended;
    }
    let program =
        Program { name: "bulkhead-poller", version: env!("CARGO_PKG_VERSION"), also: "enroll … | check …" };
    program.start(Config::load, |config| (config.log_format, &config.log_filter), run)
}
