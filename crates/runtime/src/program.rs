//! What the programs of all services have in common: their few arguments, and how they begin and end.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing::{error, info};

use crate::chain::Chain;
use crate::life::Stop;
use crate::log::{LogFormat, init_logs};
use crate::settings::EXIT_SETTINGS;

/// A service's program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub name: &'static str,
    pub version: &'static str,
    /// What else the program can be told to do, for its usage.
    pub also: &'static str,
}

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

fn say(line: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

impl Program {
    fn usage(self) -> String {
        let usage = format!("usage: {} [check-config] [--config FILE] [--version]", self.name);
        if self.also.is_empty() { usage } else { format!("{usage}\n       {} {}", self.name, self.also) }
    }

    fn settings_exit(self, lines: &impl Display) -> ExitCode {
        // Before logging starts there is nothing else to say it with.
        let _ = writeln!(std::io::stderr(), "{}: {lines}", self.name);
        ExitCode::from(EXIT_SETTINGS)
    }

    /// Reads the arguments, loads the settings, starts logging as `logs` says, and runs until the service ends.
    pub fn start<C, E: Display, F: Future<Output = anyhow::Result<()>>>(
        self,
        load: impl FnOnce(Option<&Path>) -> Result<C, E>,
        logs: impl FnOnce(&C) -> (LogFormat, &str),
        run: impl FnOnce(C, Stop) -> F,
    ) -> ExitCode {
        let (order, file) = match parse_arguments(std::env::args_os().skip(1)) {
            Ok((Order::Help, _)) => return say(&self.usage()),
            Ok((Order::Version, _)) => return say(&format!("{} {}", self.name, self.version)),
            Ok(parsed) => parsed,
            Err(problem) => return self.settings_exit(&format!("{problem}\n{}", self.usage())),
        };
        let config = match load(file.as_deref()) {
            Ok(config) => config,
            Err(problems) => return self.settings_exit(&problems),
        };
        let (format, filter) = logs(&config);
        if let Err(problem) = init_logs(format, filter) {
            return self.settings_exit(&problem);
        }
        if order == Order::CheckConfig {
            return say("settings are valid");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(config, Stop::new())));
        match ended {
            Ok(()) => {
                info!("{} has stopped", self.name);
                ExitCode::SUCCESS
            }
            Err(failure) => {
                error!(error = %Chain(failure.as_ref()), "{} has failed", self.name);
                ExitCode::FAILURE
            }
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
