//! `bulkhead-poller check`: runs one check by hand, with the code and the rules of the service, for whoever wants to know why
//! it fails from here.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_bus::payload::{Measured, Outcome};
use bulkhead_checks::{Check, CheckSpec, Prober, Rules, Secrets, read_definition};
use bulkhead_runtime::{Chain, EXIT_SETTINGS, now_ms};
use clap::Parser;
use serde_json::{Map, Value, json};

use crate::Config;

/// The word that begins it.
const COMMAND: &str = "check";
const FAILED: u8 = 1;
const NOT_MEASURED: u8 = 2;

const HELP: &str = "Examples:\n  bulkhead-poller check --type http --target https://www.example/health\n  bulkhead-poller check --type http --target https://www.example/ --option expect_status=[200,204] --option method=HEAD\n  bulkhead-poller check --type dns --target www.example --option record=MX --option server=192.0.2.53 --json\n\nExit codes:\n   0  ok\n   1  fail: the target did not answer as it should\n   2  error: nothing could be measured from here\n  64  bad usage; the text names everything that is wrong";

/// Run one check by hand, once, as the service would.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-poller check", bin_name = "bulkhead-poller check", after_help = HELP)]
struct Args {
    /// icmp, tcp, http or dns.
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// What is checked, as in a definition.
    #[arg(long)]
    target: String,
    /// How long one attempt may take.
    #[arg(long, default_value = "5s", value_name = "TIME")]
    timeout: String,
    /// How often a run that failed is tried again.
    #[arg(long, default_value_t = 0)]
    retries: u8,
    /// An option of the type; JSON, or text.
    #[arg(long = "option", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// Settings of a poller, whose rules hold here too [default: the usual rules].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What is to be run, or everything that is wrong with it.
fn read(args: &Args) -> Result<(Check, Rules), Vec<String>> {
    let (mut options, mut problems) = (Map::new(), Vec::new());
    for option in &args.options {
        match option.split_once('=') {
            Some((name, text)) => {
                let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
                options.insert(name.to_owned(), value);
            }
            None => problems.push(format!("--option {option:?} is not NAME=VALUE")),
        }
    }
    let rules = match &args.config {
        None => Rules::default(),
        Some(file) => Config::load(Some(file)).map(|config| config.rules).unwrap_or_else(|error| {
            problems.extend(error.0);
            Rules::default()
        }),
    };
    // It runs once: a day is long enough for every timeout.
    let definition = json!({"name": "by-hand", "type": args.kind, "target": args.target, "interval": "1day", "site": "here",
        "timeout": args.timeout, "retries": args.retries, "options": options});
    let check = match read_definition(&definition).and_then(|definition| CheckSpec::of_probe(&definition.probe)) {
        Ok(check) => Some(check),
        Err(lines) => {
            problems.extend(lines.into_iter().map(|line| line.replacen("check \"by-hand\": ", "", 1)));
            None
        }
    };
    match check {
        Some(check) if problems.is_empty() => Ok((check, rules)),
        Some(_) | None => Err(problems),
    }
}

/// As people read it: what came out, then what was seen on the way.
fn human(args: &Args, measured: &Measured) -> String {
    let reason = measured.reason.map(|reason| format!(" ({})", reason.as_str())).unwrap_or_default();
    let latency = measured.latency_us.map(|us| format!(", {}.{:03} ms", us / 1_000, us % 1_000)).unwrap_or_default();
    let mut text = format!("{} {}: {}{reason}{latency}\n", args.kind, args.target, measured.outcome.as_str());
    for (name, value) in &measured.detail {
        let shown = value.as_str().map_or_else(|| value.to_string(), |text| text.escape_debug().to_string());
        text.push_str(&format!("  {name:<18} {shown}\n"));
    }
    text
}

fn exit_code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Ok => ExitCode::SUCCESS,
        Outcome::Fail => ExitCode::from(FAILED),
        Outcome::Error | Outcome::Missed => ExitCode::from(NOT_MEASURED),
    }
}

fn run(args: &Args) -> ExitCode {
    let (check, rules) = match read(args) {
        Ok(read) => read,
        Err(problems) => {
            let _ = writeln!(std::io::stderr(), "bulkhead-poller check: {}", problems.join("\n  "));
            return ExitCode::from(EXIT_SETTINGS);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bulkhead-poller check: start: {}", Chain(&error));
            return ExitCode::from(NOT_MEASURED);
        }
    };
    let measured = runtime.block_on(async { Prober::open(rules).measure(&check, now_ms(), &Secrets::new()).await });
    let text = if args.json {
        let said = json!({"type": args.kind, "target": args.target, "outcome": measured.outcome, "reason": measured.reason,
            "latency_us": measured.latency_us, "started_ms": measured.started_ms, "detail": measured.detail});
        format!("{said}\n")
    } else {
        human(args, &measured)
    };
    // Whoever does not listen has the exit code.
    let _ = std::io::stdout().write_all(text.as_bytes());
    exit_code(measured.outcome)
}

/// Runs the command when the arguments are for it.
#[must_use]
pub fn check_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    if arguments.next().is_none_or(|first| first != COMMAND) {
        return None;
    }
    let all: Vec<OsString> = std::iter::once(program).chain(arguments).collect();
    Some(match Args::try_parse_from(all) {
        Ok(args) => run(&args),
        Err(error) => {
            // Nobody may be listening; help is no error.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(EXIT_SETTINGS) } else { ExitCode::SUCCESS }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn args(more: &[&str]) -> Args {
        Args::try_parse_from(["bulkhead-poller check"].iter().chain(more)).unwrap()
    }

    #[test]
    fn the_exit_code_says_how_it_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let tcp = |target: &str| format!("{:?}", run(&args(&["--type", "tcp", "--target", target, "--timeout", "1s"])));
        let expected = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(tcp(&target), expected(0));
        drop(listener);
        assert_eq!(tcp(&target), expected(1));
        assert_eq!(tcp("169.254.169.254:80"), expected(2));
        assert_eq!(tcp("nothing"), expected(64));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let wrong = args(&["--type", "htp", "--target", "x", "--timeout", "long", "--option", "a", "--retries", "9"]);
        let problems = read(&wrong).unwrap_err();
        for expected in ["--option \"a\" is not NAME=VALUE", "type \"htp\"", "timeout \"long\"", "retries 9"] {
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:#?}");
        }
        let (check, _) = read(&args(&[
            "--type",
            "http",
            "--target",
            "http://h/",
            "--option",
            "expect_status=[200]",
            "--option",
            "method=HEAD",
        ]))
        .unwrap();
        assert_eq!(check.name.as_str(), "by-hand");
    }

    #[test]
    fn people_read_what_was_seen() {
        let measured: Measured = serde_json::from_value(json!({"check": "by-hand", "kind": "http", "slot_ms": 0, "started_ms": 0,
            "outcome": "fail", "reason": "bad_status", "latency_us": 12_034, "detail": {"http_status": 404, "text": "a\u{1b}b"}}))
        .unwrap();
        let text = human(&args(&["--type", "http", "--target", "http://h/"]), &measured);
        assert!(text.starts_with("http http://h/: fail (bad_status), 12.034 ms\n  http_status        404\n"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
