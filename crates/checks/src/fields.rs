//! What people wrote, field by field. Whoever reads takes what it knows; what nobody took is unknown, and named with its
//! nearest known name. Nothing stops at the first problem.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde_json::{Map, Value};

const SHOWN_CHARACTERS_MOST: usize = 80;
/// Names that are less alike have nothing to do with each other.
const ALIKE_LEAST: f64 = 0.7;

/// What may be written where: a poller's own settings may name files of its machine, a definition that comes over the bus
/// may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Settings,
    Definition,
    /// What was judged before, perhaps by a later release: what is not known here is passed over.
    Wire,
}

/// Fields of one check that nobody has taken yet, and what is wrong with those that were.
pub(crate) struct Fields<'a> {
    pub(crate) origin: Origin,
    label: String,
    left: BTreeMap<&'a str, &'a Value>,
    known: Vec<&'static str>,
    problems: Vec<String>,
}

/// As messages show a value: JSON, cut.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(SHOWN_CHARACTERS_MOST).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

/// How messages call a check.
pub(crate) fn label_of(name: Option<&str>, position: Option<usize>) -> String {
    match (name, position) {
        (Some(name), _) => format!("check {:?}", name.chars().take(60).collect::<String>()),
        (None, Some(position)) => format!("check number {position}"),
        (None, None) => "check without a name".to_owned(),
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(origin: Origin, label: String) -> Self {
        Self { origin, label, left: BTreeMap::new(), known: Vec::new(), problems: Vec::new() }
    }

    /// The fields of `value`, its `options` beside the others. A field that is `null` is not there.
    pub(crate) fn read(origin: Origin, value: &'a Value, position: Option<usize>) -> Self {
        let name = value.get("name").and_then(Value::as_str);
        let mut fields = Self::new(origin, label_of(name, position));
        match value.as_object() {
            None => fields.say("check", Some(value), "is not a table of fields: write name, type, target and so on"),
            Some(map) => {
                fields.add_all(map, |name| name != "options" || origin == Origin::Settings);
                match map.get("options") {
                    Some(Value::Object(options)) if origin != Origin::Settings => fields.add_all(options, |_| true),
                    Some(Value::Null) | None => {}
                    // Unknown in settings, and named with what is left.
                    Some(_) if origin == Origin::Settings => {}
                    Some(other) => {
                        let rule = "is not a table: write for example {\"expect_status\": [200]}";
                        fields.say("options", Some(other), rule);
                    }
                }
            }
        }
        fields
    }

    fn add_all(&mut self, map: &'a Map<String, Value>, is_wanted: impl Fn(&str) -> bool) {
        for (name, value) in map.iter().filter(|(name, value)| !value.is_null() && is_wanted(name)) {
            self.add(name, value);
        }
    }

    pub(crate) fn add(&mut self, name: &'a str, value: &'a Value) {
        if self.left.insert(name, value).is_some() {
            let rule = "is given twice, beside options and below them: leave one out";
            self.say(&cut(name), Some(value), rule);
        }
    }

    /// The value of a field, once.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.left.remove(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Says nothing about a field, though nobody knows it.
    pub(crate) fn pass_over(&mut self, name: &str) {
        self.left.remove(name);
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn say(&mut self, field: &str, value: Option<&Value>, rule: impl Display) {
        let value = value.map(|value| format!(" {}", shown(value))).unwrap_or_default();
        self.problems.push(format!("{}: {field}{value} {rule}", self.label));
    }

    /// Keeps what could be read, and says why the rest could not.
    pub(crate) fn keep<T, E: Display>(&mut self, read: Result<T, E>) -> Option<T> {
        read.map_err(|error| self.problems.push(format!("{}: {error}", self.label))).ok()
    }

    /// A field that has to be there.
    pub(crate) fn require(&mut self, name: &'static str, way_out: &str) -> Option<&'a Value> {
        let value = self.take(name);
        if value.is_none() {
            self.say(name, None, format_args!("is missing: {way_out}"));
        }
        value
    }

    /// Text in a field, where there is one.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        let value = self.take(name)?;
        let text = value.as_str();
        if text.is_none() {
            self.say(name, Some(value), "is not text: put it in quotation marks");
        }
        text
    }

    pub(crate) fn require_text(&mut self, name: &'static str, way_out: &str) -> Option<&'a str> {
        let value = self.require(name, way_out)?;
        let text = value.as_str();
        if text.is_none() {
            self.say(name, Some(value), format_args!("is not text: {way_out}"));
        }
        text
    }

    /// A whole number in a field, where there is one.
    pub(crate) fn number(&mut self, name: &'static str, range: &std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(name)?;
        let number = value.as_u64().filter(|number| range.contains(number));
        if number.is_none() {
            let rule = format!("is not a whole number from {} to {}", range.start(), range.end());
            self.say(name, Some(value), rule);
        }
        number
    }

    /// Names what nobody took, and ends with all that is wrong.
    pub(crate) fn finish(mut self) -> Result<(), Vec<String>> {
        if self.origin != Origin::Wire {
            for (name, value) in std::mem::take(&mut self.left) {
                let rule = match nearest(name, &self.known) {
                    Some(known) => format!("is not a known field: did you mean {known}?"),
                    None => format!("is not a known field: leave it out, or use one of {}", self.known.join(", ")),
                };
                self.say(&cut(name), Some(value), rule);
            }
        }
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

fn cut(name: &str) -> String {
    name.chars().take(SHOWN_CHARACTERS_MOST).collect()
}

/// The known name that is most like `name`, if one is like it at all.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let likeness = |known: &&str| strsim::jaro_winkler(name, known);
    let best = known.iter().copied().max_by(|left, right| likeness(left).total_cmp(&likeness(right)))?;
    (likeness(&best) >= ALIKE_LEAST).then_some(best)
}
