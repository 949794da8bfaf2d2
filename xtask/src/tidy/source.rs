//! Rules for Rust files: who may name what, and how long a file may be. Lines that are comments only are not looked at.
//! The forbidden words are put together here, so that this file follows its own rules.

use super::{Finding, has_word};

/// A longer file has more than one reason to change.
const LINES_MAX: usize = 500;

/// Words that only some files may use.
struct Ban {
    rule: &'static str,
    words: &'static [&'static str],
    is_allowed_in: fn(&str) -> bool,
    instead: &'static str,
}

const BANS: [Ban; 5] = [
    Ban {
        rule: "bus-client",
        words: &[concat!("async", "_nats")],
        is_allowed_in: |path| is_in(path, &["crates/runtime/", "crates/testkit/", "tests/"]),
        instead: "only crates/runtime, crates/testkit and tests/ talk to the bus themselves: use bulkhead_runtime",
    },
    Ban {
        rule: "database-client",
        words: &[concat!("sql", "x")],
        is_allowed_in: |path| {
            is_in(path, &["crates/store/", "crates/testkit/"]) || is_test(path) || file_name(path) == "store.rs"
        },
        instead: "SQL is in crates/store and in a service's store.rs only",
    },
    Ban {
        rule: "environment",
        words: &[
            concat!("env", "::var"),
            concat!("env", "::vars"),
            concat!("env", "::var_os"),
            concat!("env", "::vars_os"),
        ],
        is_allowed_in: |path| matches!(file_name(path), "config.rs" | "settings.rs"),
        instead: "only config.rs and settings.rs read settings from the environment (PATH may be read by name)",
    },
    Ban {
        rule: "test-escape",
        words: &[concat!("#[ign", "ore"), concat!("should", "_panic")],
        is_allowed_in: |_| false,
        instead: "a test runs always, and says which error it expects",
    },
    Ban {
        rule: "sleep",
        words: &[concat!("thread", "::sleep"), concat!("time", "::sleep")],
        is_allowed_in: |path| path == "crates/runtime/src/wait.rs",
        instead: "wait for a state with a limit (bulkhead_runtime::eventually), or pace with an interval or Backoff",
    },
];

/// The first tokens of subjects and their patterns.
const SUBJECT_HEADS: [&str; 4] = ["up.", "t.", "live.", "down."];

pub(super) fn check_source(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for ban in BANS.iter().filter(|ban| !(ban.is_allowed_in)(path)) {
            let Some(word) = ban.words.iter().find(|word| has_word(line, word)) else { continue };
            if ban.rule == "environment" && reads_search_path(line) {
                continue;
            }
            findings.push(Finding::new(path, index + 1, ban.rule, format!("{word}: {}", ban.instead)));
        }
        if !may_build_subjects(path) && builds_subject(line) {
            let message = "a subject is put together from text: build it from its type in bulkhead_bus";
            findings.push(Finding::new(path, index + 1, "subject", message));
        }
    }
    findings.extend(lasting_settings(path, text));
    let lines = text.lines().count();
    if lines > LINES_MAX {
        let message = format!("{lines} lines are more than {LINES_MAX}: split the file by reason to change");
        findings.push(Finding::new(path, LINES_MAX + 1, "size", message));
    }
    findings
}

fn is_in(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

/// What is set for longer than a transaction stays on a connection that somebody else gets next. Only connections that are never
/// given back, and the owner's own role, may be set up so.
fn lasting_settings(path: &str, text: &str) -> Vec<Finding> {
    const NEVER_GIVEN_BACK: [&str; 4] = ["admin.rs", "backup.rs", "inspection.rs", "migrations.rs"];
    let is_judged = is_in(path, &["crates/store/src/", "services/"]) && !is_test(path);
    if !is_judged || NEVER_GIVEN_BACK.contains(&file_name(path)) {
        return vec![];
    }
    let message = "a setting has to end with its transaction: say `set local`, or set_config with true";
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let bad = lines.filter(|(_, line)| sets_for_good(line));
    bad.map(|(index, _)| Finding::new(path, index + 1, "set-local", message)).collect()
}

fn sets_for_good(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let mut statements = line.split(['"', ';']).map(str::trim_start);
    let sets = |text: &str| text.strip_prefix("set ").map(str::trim_start).map(str::to_owned);
    let is_lasting = |set: String| {
        let names = ["app.", "role ", "search_path", "session "];
        names.iter().any(|name| set.starts_with(name)) && !set.starts_with("role bulkhead_owner")
    };
    statements.any(|text| sets(text).is_some_and(is_lasting))
        || (line.contains("set_config(") && line.contains(", false)"))
}

/// A package's own tests, or the whole system's.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Finding programs is not a setting.
fn reads_search_path(line: &str) -> bool {
    line.contains(concat!("env", "::var_os(\"PATH\")"))
}

fn may_build_subjects(path: &str) -> bool {
    is_in(path, &["crates/bus/", "crates/testkit/", "tests/"])
}

/// Whether a text literal begins like a subject and is filled in: `"up.{site}..`, in whichever macro.
fn builds_subject(line: &str) -> bool {
    let mut literals = line.split('"').skip(1).step_by(2);
    let is_filled = |text: &str| text.contains('{') && !text.contains("{{");
    literals.any(|text| SUBJECT_HEADS.iter().any(|head| text.starts_with(head)) && is_filled(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, line: &str, expected: &[&str]) {
        let rules: Vec<&str> = check_source(path, line).iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, expected, "{path}: {line}");
    }

    #[test]
    fn only_some_files_talk_to_the_servers_themselves() {
        let bus = format!("use {}::Client;", BANS[0].words[0]);
        check("services/core/src/handlers.rs", &bus, &["bus-client"]);
        check("accounts/src/resolver.rs", &bus, &["bus-client"]);
        check("crates/runtime/src/bus.rs", &bus, &[]);
        check("crates/testkit/src/raw.rs", &bus, &[]);
        check("tests/tests/story.rs", &bus, &[]);
        let database = format!("{}::query(\"select 1\")", BANS[1].words[0]);
        check("services/core/src/ingest.rs", &database, &["database-client"]);
        check("services/core/src/store.rs", &database, &[]);
        check("services/core/tests/store.rs", &database, &[]);
        check("crates/store/src/admin.rs", &database, &[]);
        check("services/core/src/ingest.rs", "// a comment may name sql and its tools", &[]);
        check("services/core/src/ingest.rs", &format!("    /// {database}"), &[]);
    }

    #[test]
    fn settings_are_read_in_one_place() {
        for word in BANS[2].words {
            check("services/core/src/main.rs", &format!("std::{word}(\"X\")"), &["environment"]);
            check("services/core/src/config.rs", &format!("std::{word}(\"X\")"), &[]);
            check("crates/runtime/src/settings.rs", &format!("std::{word}(\"X\")"), &[]);
        }
        let path = concat!("std::env", "::var_os(\"PATH\")");
        check("accounts/src/main.rs", path, &[]);
    }

    #[test]
    fn tests_do_not_step_aside() {
        for word in BANS[3].words {
            check("tests/tests/story.rs", &format!("{word}]"), &["test-escape"]);
        }
        check("a.rs", "#[ignored_any]", &[]);
    }

    #[test]
    fn nothing_sleeps_except_the_wait() {
        for word in BANS[4].words {
            check("crates/testkit/src/raw.rs", &format!("{word}(LIMIT)"), &["sleep"]);
            check("crates/runtime/src/wait.rs", &format!("{word}(LIMIT)"), &[]);
            check("services/poller/src/run.rs", &format!("{word}_until(next)"), &[]);
        }
    }

    #[test]
    fn subjects_are_built_in_one_place() {
        for head in SUBJECT_HEADS {
            let line = format!("let subject = format!(\"{head}{{site}}.x\");");
            check("services/core/src/rpc.rs", &line, &["subject"]);
            check("services/core/src/rpc.rs", &line.replace("format!", "write!(f, "), &["subject"]);
            check("services/core/src/rpc.rs", &line.replace("format!", ""), &["subject"]);
            check("crates/bus/src/subject.rs", &line, &[]);
            check("tests/tests/isolation.rs", &line, &[]);
            check("services/core/src/rpc.rs", &format!("assert_eq!(subject, \"{head}oslo.x\");"), &[]);
            check("services/core/src/rpc.rs", &format!("f(\"x\", {{ \"{head}oslo\" }}, \"{{y}}\")"), &[]);
        }
        check("accounts/src/render.rs", "\"up.{{tag(site)}}.x\"", &[]);
    }

    #[test]
    fn what_is_set_ends_with_its_transaction() {
        let store = "services/core/src/store.rs";
        for line in [
            "run(\"set app.tenant_id = 'x'\")",
            "raw_sql(\"begin; SET ROLE tenant_acme_core\")",
            "\"set session authorization core\"",
            "; set search_path to tenant_acme\"",
            "\"select set_config('app.tenant_id', $1, false)\"",
        ] {
            check(store, line, &["set-local"]);
            check("crates/store/src/transaction.rs", line, &["set-local"]);
            check("crates/store/tests/row_security.rs", line, &[]);
            check("crates/store/src/migrations.rs", line, &[]);
        }
        for line in [
            "\"set local role x; set local search_path to y\"",
            "\"select set_config('role', $1, true)\"",
            "\"update tenant set role = 1\"",
            "\"set role bulkhead_owner\"",
            "// set role x",
        ] {
            check(store, line, &[]);
        }
    }

    #[test]
    fn long_files_are_found() {
        check("a.rs", &"x\n".repeat(500), &[]);
        check("a.rs", &"x\n".repeat(501), &["size"]);
    }
}
