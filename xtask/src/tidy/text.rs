//! Rules for every text file. The forbidden words are put together here, so that this file follows its own rules.

use super::{Finding, has_word};

/// Folders of one machine. A path below them works nowhere else.
const MACHINE_FOLDERS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Where packages come from is the business of the machine's own settings.
const REGISTRY_HOSTS: [&str; 8] = [
    concat!("pypi", ".org"),
    concat!("python", "hosted"),
    concat!("://crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("proxy.golang", ".org"),
    concat!("npm", "js"),
    concat!("deb.", "debian"),
];

const MARKS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// What a merge leaves where somebody has to choose.
const CONFLICTS: [&str; 2] = [concat!("<<<<", "<<< "), concat!(">>>>", ">>> ")];

pub(super) fn check_text(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_lock = super::is_lock(path);
    for (index, line) in text.lines().enumerate() {
        let mut find = |rule, message: String| findings.push(Finding::new(path, index + 1, rule, message));
        if let Some(folder) = MACHINE_FOLDERS.iter().find(|folder| has_absolute(line, folder)) {
            find("machine-path", format!("{folder} exists on one machine only: use a relative path or a setting"));
        }
        let is_lock_source = is_lock && line.contains("\"registry+");
        if let Some(host) = REGISTRY_HOSTS.iter().find(|host| line.contains(**host) && !is_lock_source) {
            find("registry", format!("{host} is a package registry: leave it to the settings of the machine"));
        }
        if CONFLICTS.iter().any(|mark| line.starts_with(mark)) {
            find("conflict", "a merge is not finished here: choose one side".to_owned());
        }
        if let Some(mark) = MARKS.iter().find(|mark| has_word(line, mark) && !names_issue(line)) {
            find("issue-number", format!("{mark} needs the number of an issue, as in {mark}(#12)"));
        }
    }
    findings
}

/// Whether `folder` begins a path here, instead of being the middle of one.
fn has_absolute(line: &str, folder: &str) -> bool {
    let is_middle = |c: char| c.is_alphanumeric() || "._-~*})>".contains(c);
    line.match_indices(folder).any(|(index, _)| !line[..index].ends_with(is_middle))
}

fn names_issue(line: &str) -> bool {
    line.split('#').skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, line: &str, expected: &[&str]) {
        let rules: Vec<&str> = check_text(path, line).iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, expected, "{path}: {line}");
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let [work, root, home] = MACHINE_FOLDERS;
        check("a.md", &format!("see {work}main"), &["machine-path"]);
        check("a.md", &format!("file://{home}me/x"), &["machine-path"]);
        check("a.rs", &format!("\"{root}.cache\""), &["machine-path"]);
        check("a.rs", &format!("tests{root}x crates{work}x ..{home}x $HOME}}{work}x"), &[]);
        check("a.rs", "/tmp/x /usr/bin", &[]);
    }

    #[test]
    fn registries_are_found_except_in_the_lock() {
        for host in REGISTRY_HOSTS {
            check("Dockerfile", &format!("RUN get {host}/x"), &["registry"]);
        }
        let index = concat!("registry+https://index.crates", ".io/");
        check("Cargo.lock", &format!("source = \"{index}\""), &[]);
        check("other.lock", &format!("source = \"{index}\""), &["registry"]);
        check("Cargo.lock", &format!("# {}", REGISTRY_HOSTS[0]), &["registry"]);
    }

    #[test]
    fn a_mark_without_an_issue_is_found() {
        for mark in MARKS {
            check("a.rs", &format!("// {mark}: later"), &["issue-number"]);
            check("a.rs", &format!("// {mark}(#12): later"), &[]);
            check("a.rs", &format!("// {mark}(#later)"), &["issue-number"]);
            check("a.rs", &format!("{mark}S are fine"), &[]);
        }
    }

    #[test]
    fn a_merge_that_is_not_finished_is_found() {
        for mark in CONFLICTS {
            check("a.md", &format!("{mark}HEAD"), &["conflict"]);
            check("a.md", &format!("see {mark}x"), &[]);
        }
    }

    #[test]
    fn the_line_is_named() {
        let text = format!("fine\n\n{}x", MACHINE_FOLDERS[0]);
        assert_eq!(check_text("a", &text)[0].line, 3);
    }
}
