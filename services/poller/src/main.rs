//! `bulkhead-poller [--config FILE]` runs; `bulkhead-poller check-config [--config FILE]` only validates.

use std::process::ExitCode;

use bulkhead_poller::Config;
use bulkhead_poller::run;
use bulkhead_runtime::Program;

fn main() -> ExitCode {
    let program = Program { name: "bulkhead-poller", version: env!("CARGO_PKG_VERSION") };
    program.start(Config::load, |config| (config.log_format, &config.log_filter), run)
}
