//! `bulkhead-gatekeeper [--config FILE]` runs; `bulkhead-gatekeeper check-config [--config FILE]` only validates.

use std::process::ExitCode;

use bulkhead_gatekeeper::config::Config;
use bulkhead_gatekeeper::run;
use bulkhead_runtime::Program;

fn main() -> ExitCode {
    let program = Program { name: "bulkhead-gatekeeper", version: env!("CARGO_PKG_VERSION"), also: "" };
    program.start(Config::load, |config| (config.log_format, &config.log_filter), run)
}
