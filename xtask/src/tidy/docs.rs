//! Rules for docs: generated ones are what the code says, links lead somewhere, decisions are numbered.

use std::collections::BTreeSet;

use super::Finding;

const README: &str = "README.md";
/// The two commands that a newcomer needs.
const README_COMMANDS: [&str; 2] = ["cargo xtask up", "cargo xtask test"];
const DECISIONS: &str = "docs/adr/";

/// A generated doc against what is rendered now; the first line that differs is named.
pub(super) fn check_generated(path: &str, found: Option<&str>, rendered: &str) -> Option<Finding> {
    let way_out = "run `cargo xtask tidy --write`";
    let Some(found) = found else {
        return Some(Finding::new(path, 0, "generated", format!("it is missing: {way_out}")));
    };
    if found == rendered {
        return None;
    }
    let same = found.lines().zip(rendered.lines()).take_while(|(old, new)| old == new).count();
    Some(Finding::new(path, same + 1, "generated", format!("it is not what the code says: {way_out}")))
}

/// Relative links lead to a file or folder of the checkout.
pub(super) fn check_links(path: &str, text: &str, paths: &BTreeSet<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, target) in links(text) {
        let file = target.split('#').next().unwrap_or_default();
        let is_external = target.contains("://") || target.starts_with("mailto:");
        if file.is_empty() || is_external {
            continue;
        }
        let leads_somewhere = resolved(path, file).is_some_and(|found| exists(&found, paths));
        if !leads_somewhere {
            findings.push(Finding::new(path, line, "link", format!("{target} leads to no file of this checkout")));
        }
    }
    findings
}

/// The targets of `[text](target)` with their lines; code is left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            let targets = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
            found.extend(targets.map(|target| (index + 1, target.to_owned())));
        }
    }
    found
}

/// `target` as seen from the folder of `path`; `None` when it leaves the checkout.
fn resolved(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => return None,
        false => path.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

fn exists(target: &str, paths: &BTreeSet<&str>) -> bool {
    let folder = format!("{target}/");
    target.is_empty() || paths.contains(target) || paths.iter().any(|path| path.starts_with(&folder))
}

/// Decisions are `NNNN-title.md`, numbered from 0001 without gaps.
pub(super) fn check_decisions(paths: &BTreeSet<&str>) -> Vec<Finding> {
    const RULE: &str = "adr";
    let mut findings = Vec::new();
    let mut expected = 1;
    for path in paths {
        let Some(name) = path.strip_prefix(DECISIONS) else { continue };
        let Some(number) = decision_number(name) else {
            findings.push(Finding::new(path, 0, RULE, "a decision is a file NNNN-title-in-small-letters.md"));
            continue;
        };
        if number != expected {
            let message = format!("number {expected:04} is the next one: numbers have no gaps and are used once");
            findings.push(Finding::new(path, 0, RULE, message));
        }
        expected = number + 1;
    }
    findings
}

fn decision_number(name: &str) -> Option<u32> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let is_title = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_valid = number.len() == 4 && !title.is_empty() && title.chars().all(is_title);
    number.parse().ok().filter(|_| is_valid)
}

/// The README names the commands that set everything up.
pub(super) fn check_readme(text: Option<&str>) -> Vec<Finding> {
    const RULE: &str = "readme";
    let Some(text) = text else { return vec![Finding::new(README, 0, RULE, "it is missing")] };
    let missing = README_COMMANDS.iter().filter(|command| !text.contains(**command));
    missing.map(|command| Finding::new(README, 0, RULE, format!("it does not name `{command}`"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_doc_is_compared_to_the_last_byte() {
        assert_eq!(check_generated("d.md", Some("a\nb\n"), "a\nb\n"), None);
        let line = |found: Option<&str>| check_generated("d.md", found, "a\nb\n").expect("differs").line;
        assert_eq!(line(Some("a\nc\n")), 2);
        assert_eq!(line(Some("a\nb")), 3);
        assert_eq!(line(Some("a\n")), 2);
        assert_eq!(line(None), 0);
    }

    fn check_link(path: &str, target: &str, is_good: bool) {
        let paths = BTreeSet::from(["README.md", "docs/wire.md", "docs/adr/0001-a.md"]);
        let text = format!("see\n[it]({target}) there");
        let lines: Vec<usize> = check_links(path, &text, &paths).iter().map(|finding| finding.line).collect();
        assert_eq!(lines.is_empty(), is_good, "{target} in {path}");
        assert!(is_good || lines == [2]);
    }

    #[test]
    fn relative_links_lead_somewhere() {
        for (path, target) in [
            ("README.md", "docs/wire.md"),
            ("README.md", "docs/wire.md#headers"),
            ("README.md", "docs"),
            ("README.md", "docs/adr/"),
            ("docs/wire.md", "../README.md"),
            ("docs/wire.md", "./adr/0001-a.md"),
            ("docs/wire.md", "#headers"),
            ("docs/wire.md", "https://example.test/x"),
            ("docs/adr/0001-a.md", "../.."),
        ] {
            check_link(path, target, true);
        }
        for (path, target) in [
            ("README.md", "docs/wires.md"),
            ("README.md", "doc"),
            ("docs/wire.md", "README.md"),
            ("README.md", "../README.md"),
            ("README.md", "/docs/wire.md"),
        ] {
            check_link(path, target, false);
        }
    }

    #[test]
    fn every_link_of_a_line_is_seen_and_code_is_not() {
        assert_eq!(links("[a](b) and [c](d \"title\")"), [(1, "b".to_owned()), (1, "d".to_owned())]);
        assert!(links("```\n[a](b)\n```\n`[a](b)`").is_empty());
        assert_eq!(links("```\n```\n[a](b)").len(), 1);
    }

    #[test]
    fn decisions_are_numbered_without_gaps() {
        let count = |names: &[&str]| {
            let paths: Vec<String> = names.iter().map(|name| format!("{DECISIONS}{name}")).collect();
            check_decisions(&paths.iter().map(String::as_str).collect()).len()
        };
        assert_eq!(count(&["0001-a.md", "0002-b-2.md"]), 0);
        assert_eq!(count(&["0001-a.md", "0003-b.md", "0004-c.md"]), 1);
        assert_eq!(count(&["0002-a.md"]), 1);
        assert_eq!(count(&["0001-a.md", "0001-b.md"]), 1);
        for bad in ["1-a.md", "0001.md", "0001-.md", "0001-A.md", "0001-a.txt", "notes.md", "abcd-a.md"] {
            assert_eq!(count(&[bad]), 1, "{bad}");
        }
    }

    #[test]
    fn the_readme_names_both_commands() {
        assert!(check_readme(Some("cargo xtask up\ncargo xtask test")).is_empty());
        assert_eq!(check_readme(Some("cargo xtask up")).len(), 1);
        assert_eq!(check_readme(Some("")).len(), 2);
        assert_eq!(check_readme(None).len(), 1);
    }
}
