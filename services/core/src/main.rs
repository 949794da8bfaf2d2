//! `bulkhead-core [--config FILE]` runs; `bulkhead-core check-config [--config FILE]` only validates.

use std::process::ExitCode;

use bulkhead_core::config::Config;
use bulkhead_core::run;
use bulkhead_runtime::Program;

fn main() -> ExitCode {
    let program = Program { name: "bulkhead-core", version: env!("CARGO_PKG_VERSION"), also: "" };
    program.start(Config::load, |config| (config.log_format, &config.log_filter), run)
}
