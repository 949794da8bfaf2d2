//! Licences of everything that is built: permissive ones, from a list.

use super::Finding;
use super::packages::Package;

const RULE: &str = "licence";

const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// It only widens what Apache-2.0 permits.
const ALLOWED_EXCEPTION: &str = "LLVM-exception";

pub(super) fn check_licences(packages: &[Package]) -> Vec<Finding> {
    packages.iter().filter_map(check_licence).collect()
}

fn check_licence(package: &Package) -> Option<Finding> {
    let path = package.manifest.as_deref().unwrap_or("Cargo.lock");
    let name = format!("{} {}", package.name, package.version);
    let Some(licence) = &package.licence else {
        return Some(Finding::new(path, 0, RULE, format!("{name} names no licence")));
    };
    match is_allowed(licence) {
        Some(true) => None,
        Some(false) => Some(Finding::new(path, 0, RULE, format!("{name}: {licence} is not on the list"))),
        None => Some(Finding::new(path, 0, RULE, format!("{name}: {licence:?} is not a licence expression"))),
    }
}

/// Whether an SPDX expression can be satisfied from the list; `None` when it is not one.
fn is_allowed(expression: &str) -> Option<bool> {
    // Before SPDX expressions, a slash was how packages said OR.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = alternatives(&words)?;
    rest.is_empty().then_some(value)
}

type Parsed<'a> = Option<(bool, &'a [&'a str])>;

fn alternatives<'a>(words: &'a [&'a str]) -> Parsed<'a> {
    let (mut value, mut rest) = conjunction(words)?;
    while let ["OR", more @ ..] = rest {
        let (next, after) = conjunction(more)?;
        (value, rest) = (value || next, after);
    }
    Some((value, rest))
}

fn conjunction<'a>(words: &'a [&'a str]) -> Parsed<'a> {
    let (mut value, mut rest) = single(words)?;
    while let ["AND", more @ ..] = rest {
        let (next, after) = single(more)?;
        (value, rest) = (value && next, after);
    }
    Some((value, rest))
}

fn single<'a>(words: &'a [&'a str]) -> Parsed<'a> {
    match words {
        ["(", inner @ ..] => match alternatives(inner)? {
            (value, [")", rest @ ..]) => Some((value, rest)),
            _ => None,
        },
        [] | [")" | "AND" | "OR" | "WITH", ..] => None,
        [name, "WITH", exception, rest @ ..] => Some((is_listed(name) && *exception == ALLOWED_EXCEPTION, rest)),
        [name, rest @ ..] => Some((is_listed(name), rest)),
    }
}

fn is_listed(name: &str) -> bool {
    ALLOWED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: Option<bool>) {
        assert_eq!(is_allowed(expression), expected, "{expression}");
    }

    #[test]
    fn expressions_are_satisfied_from_the_list() {
        for expression in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "Apache-2.0 AND ISC AND (MIT OR GPL-2.0)",
            "MIT OR GPL-3.0 AND LGPL-3.0",
            "Zlib",
        ] {
            check(expression, Some(true));
        }
    }

    #[test]
    fn what_is_not_on_the_list_is_refused() {
        for expression in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "GPL-3.0 OR AGPL-3.0",
            "(MIT OR Apache-2.0) AND SSPL-1.0",
            "Apache-2.0 WITH Classpath-exception-2.0",
            "mit",
        ] {
            check(expression, Some(false));
        }
        for expression in ["", "MIT OR", "AND MIT", "(MIT", "MIT)", "MIT Apache-2.0", "WITH"] {
            check(expression, None);
        }
    }

    #[test]
    fn a_package_without_a_licence_is_named() {
        let mut package = Package {
            name: "thing".to_owned(),
            version: "1.2.3".to_owned(),
            licence: None,
            manifest: None,
            dependencies: vec![],
        };
        let shown = |package: &Package| {
            check_licences(std::slice::from_ref(package)).iter().map(ToString::to_string).collect::<String>()
        };
        assert_eq!(shown(&package), "Cargo.lock:1: [licence] thing 1.2.3 names no licence");
        package.licence = Some("GPL-3.0-only".to_owned());
        assert_eq!(shown(&package), "Cargo.lock:1: [licence] thing 1.2.3: GPL-3.0-only is not on the list");
        package.licence = Some("ISC".to_owned());
        assert_eq!(shown(&package), "");
    }
}
