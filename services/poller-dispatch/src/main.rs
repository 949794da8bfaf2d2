//! `bulkhead-poller-dispatch [--config FILE]` runs; `bulkhead-poller-dispatch check-config [--config FILE]` only validates.

use std::process::ExitCode;

use bulkhead_poller_dispatch::config::Config;
use bulkhead_poller_dispatch::run;
use bulkhead_runtime::Program;

fn main() -> ExitCode {
    let program = Program { name: "bulkhead-poller-dispatch", version: env!("CARGO_PKG_VERSION"), also: "" };
    program.start(Config::load, |config| (config.log_format, &config.log_filter), run)
}
