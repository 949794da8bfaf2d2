//! What subjects are, by the Go library's loose rules and by our strict ones.

/// Why the Go library refuses it, with the rule and the way out.
pub(crate) fn library_problem(subject: &str) -> Option<String> {
    if subject.is_empty() {
        return Some("is empty: a subject has at least one token, write one".to_owned());
    }
    let rule = if subject.contains(' ') {
        "has a space: a subject has none, join the words with '-'"
    } else if subject.starts_with('.') || subject.ends_with('.') {
        "begins or ends with a dot: a subject begins and ends with a token, take the dot away"
    } else if subject.contains("..") {
        "has two dots in a row: every token has at least one character, write it"
    } else {
        return None;
    };
    Some(format!("{subject:?} {rule}"))
}

/// Why we refuse it although the library does not: checked token by token.
pub(crate) fn strict_problem(subject: &str) -> Option<String> {
    let last = subject.split('.').count() - 1;
    subject.split('.').enumerate().find_map(|(index, token)| {
        let rule = if token.is_empty() {
            "is empty: write at least one character between dots"
        } else if token.chars().any(|c| c.is_whitespace() || c.is_control()) {
            "has white space: a token has none, take it away"
        } else if token == ">" && index != last {
            "stands before others: '>' is only allowed as the last token, use '*' here"
        } else if token.len() > 1 && token.contains(['*', '>']) && !token.contains("{{") {
            "has a wildcard beside other characters: a wildcard is a whole token, split it or take it away"
        } else {
            return None;
        };
        Some(format!("token {} ({token:?}) of {subject:?} {rule}", index + 1))
    })
}

pub(crate) fn has_wildcards(subject: &str) -> bool {
    subject.split('.').any(|token| token == "*") || ends_open(subject)
}

/// It ends in `>`.
pub(crate) fn ends_open(subject: &str) -> bool {
    subject == ">" || subject.ends_with(".>")
}

pub(crate) fn count_stars(subject: &str) -> usize {
    subject.split('.').filter(|token| *token == "*").count()
}

/// Whether whatever matches `inner` matches `outer`, as the library decides it.
pub(crate) fn is_contained_in(inner: &str, outer: &str) -> bool {
    let (inner, outer): (Vec<&str>, Vec<&str>) = (inner.split('.').collect(), outer.split('.').collect());
    let is_open = outer.last() == Some(&">");
    if inner.len() < outer.len() || (inner.len() > outer.len() && !is_open) {
        return false;
    }
    let fixed = if is_open { outer.len() - 1 } else { outer.len() };
    outer[..fixed].iter().zip(&inner).all(|(rule, token)| rule == token || *rule == "*")
}

/// The number in a reference to a wildcard such as `$1`.
pub(crate) fn reference(token: &str) -> Option<i64> {
    token.strip_prefix('$').filter(|number| !number.is_empty()).and_then(|number| number.parse().ok())
}

/// A local subject as others see it: references are wildcards.
pub(crate) fn without_references(subject: &str) -> String {
    let token = |token| if reference(token).is_some() { "*" } else { token };
    subject.split('.').map(token).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containment_is_by_token() {
        for (inner, outer, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.*", true),
            ("a.b.c", "a.>", true),
            // The library takes an open end for one token, and so does its verdict on overlaps.
            ("a.>", "a.*", true),
            ("a", "a.>", false),
            ("a.*", "a.b", false),
            (">", "*", true),
            ("*", ">", true),
            ("a.b", "a", false),
        ] {
            assert_eq!(is_contained_in(inner, outer), expected, "{inner} in {outer}");
        }
    }

    #[test]
    fn our_rules_see_what_the_librarys_do_not() {
        for subject in ["a.>.b", "a*.b", "a.b>", "a.\tb", "a\n"] {
            assert!(library_problem(subject).is_none() && strict_problem(subject).is_some(), "{subject:?}");
        }
        for subject in ["", " a", ".a", "a.", "a..b"] {
            assert!(library_problem(subject).is_some(), "{subject:?}");
        }
        for subject in ["a", "*", ">", "a.*.>", "$JS.API.>", "up.{{tag(site)}}.x", "_INBOX_{{name()}}.>"] {
            assert!(library_problem(subject).is_none() && strict_problem(subject).is_none(), "{subject:?}");
        }
        assert_eq!(without_references("$1.a.$x.$2"), "*.a.$x.*");
    }
}
