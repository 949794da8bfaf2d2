//! `bulkhead-poller [--config FILE]` runs; `bulkhead-poller check-config [--config FILE]` only validates.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_poller::{Config, run};
use bulkhead_runtime::{Chain, EXIT_SETTINGS, Stop, init_logs};
use tracing::error;

const USAGE: &str = "usage: bulkhead-poller [check-config] [--config FILE] [--version]";

#[derive(Debug, PartialEq, Eq)]
enum Order {
    Run,
    CheckConfig,
    Help,
    Version,
}

/// The order and the settings file of a command line.
fn parse_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<(Order, Option<PathBuf>), String> {
    let (mut order, mut file) = (Order::Run, None);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("check-config") => order = Order::CheckConfig,
            Some("-h" | "--help") => order = Order::Help,
            Some("--version") => order = Order::Version,
            Some("--config") => match arguments.next() {
                Some(path) => file = Some(PathBuf::from(path)),
                None => return Err("--config needs the name of a file".to_owned()),
            },
            Some(_) | None => return Err(format!("argument {argument:?} is not known")),
        }
    }
    Ok((order, file))
}

fn settings_exit(lines: &impl std::fmt::Display) -> ExitCode {
    eprintln!("bulkhead-poller: {lines}");
    ExitCode::from(EXIT_SETTINGS)
}

fn say(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn main() -> ExitCode {
    let (order, file) = match parse_arguments(std::env::args_os().skip(1)) {
        Ok((Order::Help, _)) => return say(USAGE),
        Ok((Order::Version, _)) => return say(concat!("bulkhead-poller ", env!("CARGO_PKG_VERSION"))),
        Ok(parsed) => parsed,
        Err(problem) => return settings_exit(&format!("{problem}\n{USAGE}")),
    };
    let config = match Config::load(file.as_deref()) {
        Ok(config) => config,
        Err(problems) => return settings_exit(&problems),
    };
    if let Err(problem) = init_logs(config.log_format, &config.log_filter) {
        return settings_exit(&problem);
    }
    if order == Order::CheckConfig {
        return say("settings are valid");
    }
    let ended = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = ended.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(config, Stop::new())));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = %Chain(failure.as_ref()), "poller failed");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<(Order, Option<&str>), &str>) {
        let parsed = parse_arguments(line.split_whitespace().map(OsString::from));
        let expected = expected.map(|(order, file)| (order, file.map(PathBuf::from))).map_err(str::to_owned);
        assert_eq!(parsed, expected, "{line}");
    }

    #[test]
    fn arguments_are_few_and_strict() {
        check("", Ok((Order::Run, None)));
        check("--config a.toml", Ok((Order::Run, Some("a.toml"))));
        check("check-config --config a.toml", Ok((Order::CheckConfig, Some("a.toml"))));
        check("--help", Ok((Order::Help, None)));
        check("--version", Ok((Order::Version, None)));
        check("--config", Err("--config needs the name of a file"));
        check("--confg a", Err("argument \"--confg\" is not known"));
    }
}
