//! Reads a page of metrics as the OpenMetrics text format 1.0 defines it, and refuses what the standard refuses.
//!
//! The one parser on crates.io that is as strict is not under a licence that this repository takes. What services here never
//! write (timestamps, exemplars, types beside counter, gauge and histogram) is refused as well.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by name.
type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One line that is no comment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Everything under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub name: String,
    pub kind: Kind,
    pub help: String,
    pub unit: Option<String>,
    pub samples: Vec<Sample>,
    is_typed: bool,
}

/// A page that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposition {
    pub families: Vec<Family>,
}

/// What is wrong, and in which line; 0 is the page as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {rule}: {text:?}")]
pub struct Malformed {
    pub line: usize,
    pub rule: &'static str,
    pub text: String,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["_total"],
            Self::Gauge => &[""],
            Self::Histogram => &["_bucket", "_count", "_sum"],
        }
    }
}

impl Exposition {
    /// # Errors
    /// The first thing that the standard does not allow.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let Some(body) = text.strip_suffix("# EOF\n") else {
            return Err(malformed(0, "a page ends in \"# EOF\" and a newline", &tail(text)));
        };
        let mut families: Vec<Family> = Vec::new();
        for (line, text) in (1..).zip(body.split_terminator('\n')) {
            match text.strip_prefix("# ") {
                Some(metadata) => read_metadata(&mut families, line, metadata)?,
                None => read_sample(&mut families, line, text)?,
            }
        }
        let mut seen = BTreeSet::new();
        for family in &families {
            let is_new = seen.insert(&family.name);
            is_new.then_some(()).ok_or_else(|| malformed(0, "a family is one group of lines", &family.name))?;
            check_family(family)?;
        }
        Ok(Self { families })
    }

    /// The value of the one sample with this name and exactly these labels.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut samples = self.families.iter().flat_map(|family| &family.samples);
        samples.find(|sample| sample.name == name && sample.labels == labels).map(|sample| sample.value)
    }
}

fn malformed(line: usize, rule: &'static str, text: &str) -> Malformed {
    Malformed { line, rule, text: text.chars().take(200).collect() }
}

fn tail(text: &str) -> String {
    text.lines().next_back().unwrap_or_default().to_owned()
}

fn is_name(text: &str) -> bool {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    text.starts_with(is_start) && text.chars().all(|c| is_start(c) || c.is_ascii_digit())
}

/// `HELP name text`, `TYPE name type` or `UNIT name unit`, each once, before the samples.
fn read_metadata(families: &mut Vec<Family>, line: usize, text: &str) -> Result<(), Malformed> {
    let wrong = |rule| malformed(line, rule, text);
    let mut words = text.splitn(3, ' ');
    let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
        return Err(wrong("a comment is HELP, TYPE or UNIT with a name and a value"));
    };
    if !is_name(name) {
        return Err(wrong("a name has letters, digits, colons and underscores"));
    }
    if families.last().is_none_or(|family| family.name != name) {
        if what != "HELP" {
            return Err(wrong("a family begins with its HELP here"));
        }
        let help = unescaped(rest).ok_or_else(|| wrong("a backslash escapes a quote, a backslash or a newline"))?;
        let name = name.to_owned();
        families.push(Family { name, kind: Kind::Gauge, help, unit: None, samples: vec![], is_typed: false });
        return Ok(());
    }
    let Some(family) = families.last_mut().filter(|family| family.samples.is_empty()) else {
        return Err(wrong("metadata comes before the samples"));
    };
    let kind = [Kind::Counter, Kind::Gauge, Kind::Histogram].into_iter().find(|kind| kind.as_str() == rest);
    match (what, rest, kind) {
        ("TYPE", _, Some(kind)) if !family.is_typed => {
            family.kind = kind;
            family.is_typed = true;
        }
        ("UNIT", unit, _) if family.unit.is_none() && name.ends_with(&format!("_{unit}")) => {
            family.unit = Some(unit.to_owned());
        }
        _ => return Err(wrong("a type is counter, gauge or histogram, a unit ends the name, and each is said once")),
    }
    Ok(())
}

/// `name{label="value",..} number` of the family that the last metadata was about.
fn read_sample(families: &mut [Family], line: usize, text: &str) -> Result<(), Malformed> {
    let wrong = |rule| malformed(line, rule, text);
    let family = families.last_mut().ok_or_else(|| wrong("a sample comes after the metadata of its family"))?;
    let end = text.find(['{', ' ']).ok_or_else(|| wrong("a sample is a name and a value"))?;
    let (name, rest) = text.split_at(end);
    let suffix = name.strip_prefix(family.name.as_str());
    if !is_name(name) || !suffix.is_some_and(|suffix| family.kind.suffixes().contains(&suffix)) {
        return Err(wrong("a sample's name is its family's with a suffix of its type"));
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => {
            read_labels(rest).ok_or_else(|| wrong("labels are name=\"value\" with commas, each name once"))?
        }
        None => (Labels::new(), rest),
    };
    let value = rest.strip_prefix(' ').and_then(number).ok_or_else(|| wrong("one space, then one number"))?;
    if family.samples.iter().any(|sample| sample.name == name && sample.labels == labels) {
        return Err(wrong("a sample is there once"));
    }
    family.samples.push(Sample { name: name.to_owned(), labels, value });
    Ok(())
}

/// The labels up to the closing brace, and what follows it.
fn read_labels(text: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = read_quoted(after)?;
        let is_new = is_name(name) && !name.contains(':') && labels.insert(name.to_owned(), value).is_none();
        match (is_new, after.chars().next()?) {
            (true, ',') => rest = &after[1..],
            (true, '}') => return Some((labels, &after[1..])),
            _ => return None,
        }
    }
}

/// A text up to its closing quote, and what follows it.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let mut is_escaped = false;
    let end = text.find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    })?;
    Some((unescaped(&text[..end])?, &text[end + 1..]))
}

fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            },
            other => other,
        });
    }
    Some(plain)
}

/// A number as the format writes it: no spaces, no `inf` in other words.
fn number(text: &str) -> Option<f64> {
    let is_plain =
        text.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c)) && text.contains(|c: char| c.is_ascii_digit());
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ if is_plain => text.parse().ok(),
        _ => None,
    }
}

fn check_family(family: &Family) -> Result<(), Malformed> {
    let wrong = |rule| malformed(0, rule, &family.name);
    if family.samples.is_empty() || !family.is_typed {
        return Err(wrong("a family has a type and samples"));
    }
    let names = |sample: &Sample| sample.labels.keys().filter(|name| *name != "le").cloned().collect::<Vec<_>>();
    if family.samples.iter().any(|sample| names(sample) != names(&family.samples[0])) {
        return Err(wrong("all samples of a family have the same label names"));
    }
    let is_gauge = family.kind == Kind::Gauge;
    if !is_gauge && family.samples.iter().any(|sample| !sample.value.is_finite() || sample.value < 0.0) {
        return Err(wrong("what is counted is finite and not negative"));
    }
    if family.kind == Kind::Histogram { check_histogram(family) } else { Ok(()) }
}

fn check_histogram(family: &Family) -> Result<(), Malformed> {
    let wrong = |rule| malformed(0, rule, &family.name);
    let without_end = |sample: &Sample| {
        let mut labels = sample.labels.clone();
        labels.remove("le");
        labels
    };
    let mut children: BTreeMap<Labels, Vec<&Sample>> = BTreeMap::new();
    let mut last = None;
    for sample in &family.samples {
        let is_bucket = sample.name.ends_with("_bucket");
        if is_bucket != sample.labels.contains_key("le") {
            return Err(wrong("a bucket, and nothing else, says where it ends"));
        }
        let labels = without_end(sample);
        let is_next = last.as_ref() == Some(&labels) || !children.contains_key(&labels);
        is_next.then_some(()).ok_or_else(|| wrong("the samples of one histogram stand together"))?;
        children.entry(labels.clone()).or_default().push(sample);
        last = Some(labels);
    }
    for samples in children.values() {
        let one = |suffix: &str| samples.iter().find(|sample| sample.name.ends_with(suffix)).map(|sample| sample.value);
        let (Some(count), Some(_)) = (one("_count"), one("_sum")) else {
            return Err(wrong("a histogram has a count and a sum"));
        };
        let ends: Option<Vec<(f64, f64)>> = samples
            .iter()
            .filter_map(|sample| sample.labels.get("le").map(|end| number(end).map(|end| (end, sample.value))))
            .collect();
        let ends = ends.ok_or_else(|| wrong("a bucket ends at a number"))?;
        let grows = ends.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        if !grows || ends.last() != Some(&(f64::INFINITY, count)) {
            return Err(wrong("buckets grow up to +Inf, which holds the count"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
