//! What servers fill in: functions in templates, and the values that users bring for them.
//!
//! Servers substitute without escaping (facts: accounts-and-nsc, finding 9), so a value is one literal token or refused.

use bulkhead_bus::UserName;

use super::issue::Issues;
use crate::PermissionTemplate;

/// A function as it stands in a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function<'a> {
    Name,
    Subject,
    AccountName,
    AccountSubject,
    Tag(&'a str),
    AccountTag(&'a str),
}

const KNOWN: &str = "name(), subject(), account-name(), account-subject(), tag(x), account-tag(x)";

fn parse_function(text: &str) -> Option<Function<'_>> {
    let key = |prefix: &str| {
        let key = text.strip_prefix(prefix)?.strip_suffix(')')?;
        key.parse::<UserName>().is_ok().then_some(key)
    };
    match text {
        "name()" => Some(Function::Name),
        "subject()" => Some(Function::Subject),
        "account-name()" => Some(Function::AccountName),
        "account-subject()" => Some(Function::AccountSubject),
        _ => key("tag(").map(Function::Tag).or_else(|| key("account-tag(").map(Function::AccountTag)),
    }
}

/// The functions of one subject, or what stands where one should be.
fn functions(subject: &str) -> Result<Vec<Function<'_>>, &str> {
    let mut found = Vec::new();
    let mut rest = subject;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inner, behind)) = after.split_once("}}").filter(|_| !before.contains("}}")) else { return Err(rest) };
        found.push(parse_function(inner).ok_or(inner)?);
        rest = behind;
    }
    if rest.contains("}}") { Err(rest) } else { Ok(found) }
}

fn subjects(template: &PermissionTemplate) -> impl Iterator<Item = (String, &String)> {
    let sets = [("pub", &template.publish), ("sub", &template.subscribe)];
    sets.into_iter().flat_map(|(side, set)| {
        let named = |list: &'static str, subjects: &'_ [String]| -> Vec<String> {
            (0..subjects.len()).map(|index| format!("{side}.{list}[{index}]")).collect()
        };
        let allow = named("allow", &set.allow).into_iter().zip(&set.allow);
        allow.chain(named("deny", &set.deny).into_iter().zip(&set.deny))
    })
}

/// Every function in a template is one that servers know, spelled exactly.
pub(super) fn check_functions(base: &str, template: &PermissionTemplate, issues: &mut Issues) {
    for (path, subject) in subjects(template) {
        if let Err(found) = functions(subject) {
            let rule = format!("the functions are {KNOWN}, in lower case and without spaces: write one of those");
            issues.ours(&format!("{base}{path}"), format!("{found:?} in {subject:?} is no function: {rule}"));
        }
    }
}

/// What a template asks for, each once; what is no function is not in it.
pub(super) fn used_functions(template: &PermissionTemplate) -> Vec<Function<'_>> {
    let mut used = Vec::new();
    for (_, subject) in subjects(template) {
        for function in functions(subject).unwrap_or_default() {
            if !used.contains(&function) {
                used.push(function);
            }
        }
    }
    used
}

/// Our users are called by one literal token, and so are the values of their tags.
pub(super) fn check_user_texts(name: &str, tags: &[String], issues: &mut Issues) {
    if issues.is_ours() {
        check_name("name", name, issues);
    } else if let Some(problem) = injection(name) {
        issues.warn("name", problem);
    }
    for (index, tag) in tags.iter().enumerate() {
        let path = format!("tags[{index}]");
        let Some((_, value)) = tag.split_once(':') else { continue };
        if issues.is_ours() {
            check_name(&path, value, issues);
        } else if let Some(problem) = injection(value) {
            issues.warn(&path, problem);
        }
    }
}

pub(super) fn check_name(path: &str, name: &str, issues: &mut Issues) {
    if name.parse::<UserName>().is_err() {
        let rule = "1 to 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
        issues.ours(path, format!("{name:?} is not a name of ours: names have {rule}; choose such a name"));
    }
}

/// Why a value would reach further than one token.
pub(super) fn injection(value: &str) -> Option<String> {
    let is_literal = !value.is_empty()
        && !value.contains(['.', '*', '>', '{', '}'])
        && !value.chars().any(|c| c.is_whitespace() || c.is_control());
    let rule = "servers fill it into templates as it is, so it is one token without wildcards: choose another value";
    (!is_literal).then(|| format!("{value:?} is not one literal token: {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_spelled_exactly() {
        let found = functions("a.{{tag(site)}}.{{name()}}._{{account-tag(x)}}").unwrap();
        assert_eq!(found, [Function::Tag("site"), Function::Name, Function::AccountTag("x")]);
        for subject in
            ["{{Name()}}", "{{ name() }}", "{{tag()}}", "{{tag(*)}}", "{{name()", "name()}}", "{{}}", "}}{{name()}}"]
        {
            assert!(functions(subject).is_err(), "{subject}");
        }
        for value in ["a.b", "*", ">", "", "a b", "{{name()}}"] {
            assert!(injection(value).is_some(), "{value:?}");
        }
        assert_eq!(injection("oslo"), None);
    }
}
