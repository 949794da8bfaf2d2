//! `cargo xtask tidy`: the rules that no compiler checks. Each is a pure function over a path and its text, or over
//! what cargo says of the packages; reading files and running programs happens in this file only.
//!
//! To add a rule: a function that returns findings, its call in `findings_in` or `run`, and a test that it can fail.

mod docs;
mod licences;
mod packages;
mod source;
mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cargo::{Failure, cargo, folder_in, output_of};

/// Rendered from the table of subjects.
const SUBJECTS_DOC: &str = "docs/subjects.md";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Check,
    /// Renders generated docs anew, then checks.
    Write,
}

/// A place where a rule is broken. Line 0 is the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line.max(1), self.rule, self.message)
    }
}

pub(crate) fn run(mode: Mode) -> Result<(), Failure> {
    let metadata = read_metadata()?;
    let root = &folder_in(&metadata, "workspace_root")?;
    let rendered =
        output_of(cargo().args(["run", "--quiet", "--locked", "-p", "bulkhead-bus", "--example", "subjects"]))?;
    if mode == Mode::Write {
        write_doc(&root.join(SUBJECTS_DOC), &rendered)?;
    }
    let packages = packages::read_packages(&metadata, root).map_err(Failure::new)?;
    let files = read_files(root)?;
    let mut findings = findings_in(&files);
    findings.extend(packages::check_direction(&packages));
    findings.extend(licences::check_licences(&packages));
    findings.extend(docs::check_generated(SUBJECTS_DOC, text_of(&files, SUBJECTS_DOC), &rendered));
    report(findings, files.len(), packages.len())
}

/// Every rule that needs only the files of the checkout.
fn findings_in(files: &[(String, String)]) -> Vec<Finding> {
    let paths: BTreeSet<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    let mut findings = Vec::new();
    for (path, text) in files {
        findings.extend(text::check_text(path, text));
        match path.rsplit('.').next() {
            Some("rs") => findings.extend(source::check_source(path, text)),
            Some("md") => findings.extend(docs::check_links(path, text, &paths)),
            _ => {}
        }
        if is_lock(path) {
            findings.extend(packages::check_lock(path, text));
        }
    }
    findings.extend(docs::check_decisions(&paths));
    findings.extend(docs::check_readme(text_of(files, "README.md")));
    findings
}

/// Of this workspace, or of one within it.
fn is_lock(path: &str) -> bool {
    path.rsplit('/').next() == Some("Cargo.lock")
}

fn report(mut findings: Vec<Finding>, files: usize, packages: usize) -> Result<(), Failure> {
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => {
            eprintln!("tidy: {files} files and {packages} packages follow the rules");
            Ok(())
        }
        count => Err(Failure::new(format!("tidy: rules are broken in {count} places"))),
    }
}

fn text_of<'a>(files: &'a [(String, String)], path: &str) -> Option<&'a str> {
    files.iter().find(|(name, _)| name == path).map(|(_, text)| text.as_str())
}

fn write_doc(path: &Path, text: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(path);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(path, text));
    written.map_err(|error| Failure::new(format!("write {}: {error}", path.display())))
}

/// What cargo knows of all packages that are built on this kind of machine.
fn read_metadata() -> Result<Value, Failure> {
    let version = output_of(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Failure::new("rustc -vV names no host"))?;
    let text = output_of(cargo().args(["metadata", "--locked", "--format-version", "1", "--filter-platform", host]))?;
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("read cargo metadata: {error}")))
}

/// Every text file that is in the checkout and not ignored, as path from the root and text.
fn read_files(root: &Path) -> Result<Vec<(String, String)>, Failure> {
    let mut git = Command::new("git");
    git.arg("-C").arg(root);
    // Listing runs nothing from the checkout, so that it may belong to somebody else than a CI's root.
    git.args(["-c", "core.fsmonitor=false", "-c"]).arg(format!("safe.directory={}", root.display()));
    let listed = output_of(git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let paths: BTreeSet<&str> = listed.split('\0').filter(|path| !path.is_empty()).collect();
    let mut files = Vec::new();
    for path in paths {
        let full = root.join(path);
        // Gone but not yet staged as such, or a link to somewhere else.
        if !full.symlink_metadata().is_ok_and(|entry| entry.is_file()) {
            continue;
        }
        let bytes = fs::read(&full).map_err(|error| Failure::new(format!("read {path}: {error}")))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push((path.to_owned(), text));
        }
    }
    Ok(files)
}

/// Whether `text` holds `word` at `index` as a whole word: an identifier character on neither side.
fn is_whole_word(text: &str, index: usize, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let starts_open = word.starts_with(is_part) && text[..index].ends_with(is_part);
    let ends_open = word.ends_with(is_part) && text[index + word.len()..].starts_with(is_part);
    !starts_open && !ends_open
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(index, _)| is_whole_word(text, index, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole() {
        for (text, word, expected) in [
            ("use sql;", "sql", true),
            ("use sqls;", "sql", false),
            ("my_sql", "sql", false),
            ("sqls sql", "sql", true),
            ("clock::wait(x)", "clock::wait", true),
            ("clock::wait_until(x)", "clock::wait", false),
            ("#[skipped", "#[skip", false),
            ("#[skip]", "#[skip", true),
        ] {
            assert_eq!(has_word(text, word), expected, "{word} in {text}");
        }
    }

    #[test]
    fn findings_point_at_file_and_line() {
        let finding = Finding::new("a/b.rs", 7, "size", "too long");
        assert_eq!(finding.to_string(), "a/b.rs:7: [size] too long");
        assert_eq!(Finding::new("a", 0, "r", "m").to_string(), "a:1: [r] m");
    }

    #[test]
    fn every_kind_of_file_meets_its_rules() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let mark = concat!("FIX", "ME");
        let files = [
            file("crates/bus/src/a.rs", &format!("// {mark} later\n{}", "x\n".repeat(501))),
            file("docs/a.md", "[gone](b.md)"),
            file("docs/adr/0002-x.md", "# 2"),
            file("Cargo.lock", ""),
            file("fuzz/Cargo.lock", "name = \"openssl-sys\""),
        ];
        let rules: BTreeSet<&str> = findings_in(&files).iter().map(|finding| finding.rule).collect();
        let expected = ["adr", "banned-package", "issue-number", "link", "readme", "size"];
        assert_eq!(rules.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_finding_is_a_failure() {
        assert!(report(vec![], 1, 1).is_ok());
        assert_eq!(report(vec![Finding::new("a", 1, "r", "m")], 1, 1).expect_err("a finding").code, 1);
    }
}
