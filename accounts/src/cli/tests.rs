//! The whole tree of commands: what each one promises in its help holds.

use std::collections::BTreeSet;

use clap::CommandFactory;

use super::*;

#[test]
fn arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_number_of_servers_that_makes_no_hub_is_refused_with_the_rule() {
    for bad in ["0", "2", "5", "three", ""] {
        let error = Cli::try_parse_from(["bulkhead", "up", "--hub", bad]).unwrap_err().to_string();
        assert!(error.contains("write 1, or 3"), "{bad:?}: {error}");
    }
    assert!(Cli::try_parse_from(["bulkhead", "up", "--hub", "3"]).is_ok());
}

#[test]
fn a_number_that_is_none_is_refused_with_the_rule() {
    for line in [["hub", "wait", "--limit-s"], ["results", "list", "--minutes"], ["results", "list", "--limit"]] {
        for bad in ["abc", "0", "99999999"] {
            let error = Cli::try_parse_from(["bulkhead"].into_iter().chain(line).chain([bad])).unwrap_err();
            assert!(error.to_string().contains("write a whole number from 1 to"), "{line:?} {bad}: {error}");
        }
    }
}

#[test]
fn bad_names_are_refused_at_the_door_with_the_rule() {
    let long = "x".repeat(300);
    for bad in ["a.b", "*", ">", "a b", "a\r\nb", "core", "intake-7", "Ａcme", long.as_str()] {
        let error = Cli::try_parse_from(["bulkhead", "status", "--tenant", bad]).unwrap_err().to_string();
        assert!(error.contains("a name has") || error.contains("reserved"), "{bad:?}: {error}");
    }
}

/// Commands that change nothing, or only print: all others have `--dry-run`.
const READERS: &[&str] = &[
    "tools",
    "hub status",
    "hub wait",
    "ca list",
    "db status",
    "backup show",
    "ca crl",
    "ca list",
    "ca show",
    "tenant list",
    "tenant show",
    "tenant user list",
    "operator show",
    "operator export",
    "operator user list",
    "keys list",
    "nsc check",
    "validate",
    "expirations",
    "pull",
    "diff",
    "plan list",
    "plan show",
    "role list",
    "poller list",
    "poller show",
    "poller history",
    "poller status",
    "poller select",
    "poller watch",
    "poller events",
    "check list",
    "check show",
    "check gaps",
    "check history",
    "check uptime",
    "secret list",
    "site list",
    "results list",
    "results tail",
    "status",
    "doctor",
    "completions",
    "man",
];
/// What has another way to be tried: `--home` elsewhere, `--rehearse`, a file that is simply written, a listener of loopback.
const OTHERWISE: &[&str] = &["up", "restore", "backup", "tenant backup", "enrolment-desk"];

/// Every command that does something, by its words.
fn leaves() -> Vec<(String, clap::Command)> {
    commands().into_iter().filter(|(_, command)| !command.is_subcommand_required_set()).collect()
}

/// Groups of commands as well.
fn commands() -> Vec<(String, clap::Command)> {
    fn walk(words: &str, command: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let words = format!("{words} {}", sub.get_name()).trim().to_owned();
            found.push((words.clone(), sub.clone()));
            walk(&words, sub, found);
        }
    }
    let mut found = Vec::new();
    walk("", &Cli::command(), &mut found);
    found
}

/// As a shell splits a line: at blanks, but not between double quotes.
fn words_of(line: &str) -> Vec<String> {
    let mut is_quoted = false;
    let words = line.split(|letter: char| {
        is_quoted ^= letter == '"';
        letter == ' ' && !is_quoted
    });
    words.filter(|word| !word.is_empty()).map(|word| word.replace('"', "")).collect()
}

/// The lines of a help that show this command, without what is said beside them.
fn examples(words: &str, command: &clap::Command) -> Vec<Vec<String>> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let start = format!("bulkhead {words}");
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with(&start));
    let bare = lines.map(|line| line.split("  ").next().unwrap_or_default());
    bare.map(words_of).collect()
}

#[test]
fn every_command_shows_an_example_that_it_takes() {
    let without = commands().into_iter().filter(|(words, command)| examples(words, command).is_empty());
    let without: Vec<String> = without.map(|(words, _)| words).collect();
    assert!(without.is_empty(), "no example in the help of: {without:?}");
    for (words, command) in commands() {
        let shown = examples(&words, &command);
        for line in shown {
            // A redirection is the shell's.
            let line: Vec<String> = line.into_iter().take_while(|word| word != ">" && word != "|").collect();
            Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        }
    }
}

#[test]
fn every_command_that_changes_something_can_be_tried_dry() {
    let (mut readers, mut changers) = (BTreeSet::new(), BTreeSet::new());
    for (words, command) in leaves() {
        let is_dry = command.get_arguments().any(|argument| argument.get_long() == Some("dry-run"));
        if is_dry {
            changers.insert(words)
        } else {
            readers.insert(words)
        };
    }
    let expected: BTreeSet<String> = READERS.iter().chain(OTHERWISE).map(|words| (*words).to_owned()).collect();
    assert_eq!(readers, expected);
    assert!(changers.len() > 20, "{changers:?}");
}

#[test]
fn every_command_and_option_says_what_it_is() {
    for (words, command) in leaves() {
        assert!(command.get_about().is_some(), "bulkhead {words} does not say what it does");
        let unsaid = command.get_arguments().find(|argument| {
            let is_plain = argument.is_positional() || argument.is_hide_set();
            !is_plain && argument.get_help().is_none()
        });
        assert!(unsaid.is_none(), "bulkhead {words}: {unsaid:?}");
    }
}
