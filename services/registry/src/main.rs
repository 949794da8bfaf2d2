//! `bulkhead-registry [--config FILE]` runs; `bulkhead-registry check-config [--config FILE]` only validates.

use std::process::ExitCode;

use bulkhead_registry::config::Config;
use bulkhead_registry::run;
use bulkhead_runtime::Program;

fn main() -> ExitCode {
    let program = Program { name: "bulkhead-registry", version: env!("CARGO_PKG_VERSION"), also: "" };
    program.start(Config::load, |config| (config.log_format, &config.log_filter), run)
}
