//! Loads settings, starts logging, runs the gatekeeper, reports how it ended.

use std::process::ExitCode;

use bulkhead_gatekeeper::config::{Command, Config, command_line};
use bulkhead_runtime::{Chain, EXIT_SETTINGS, Stop, init_logs};
use tracing::{error, info};

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "before logging starts, and where the answer is a line")]
#[tokio::main]
async fn main() -> ExitCode {
    let command = match command_line(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(problem) => {
            eprintln!("bulkhead-gatekeeper: {problem}");
            return ExitCode::from(EXIT_SETTINGS);
        }
    };
    let (file, is_check) = match command {
        Command::Run(file) => (file, false),
        Command::CheckConfig(file) => (file, true),
        Command::Version => {
            println!("bulkhead-gatekeeper {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
    };
    let loaded = Config::load(file.as_deref()).and_then(|config| {
        init_logs(config.log_format, &config.log_filter).map(|()| config).map_err(|error| error.to_string())
    });
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("bulkhead-gatekeeper: {problems}");
            return ExitCode::from(EXIT_SETTINGS);
        }
    };
    if is_check {
        println!("settings are valid");
        return ExitCode::SUCCESS;
    }
    match bulkhead_gatekeeper::run(config, Stop::new()).await {
        Ok(()) => {
            info!("the gatekeeper has stopped");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            error!(error = %Chain(failure.as_ref()), "the gatekeeper has failed");
            ExitCode::FAILURE
        }
    }
}
