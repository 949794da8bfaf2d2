//! What becomes of a tenant's checks when people change them: all of it or nothing, and everything that is wrong at once. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::payload::{CHANGES_MOST, CheckChange, CheckDefinition, ErrorCode, ReplyError};
use bulkhead_bus::{CheckName, SiteName};
use bulkhead_checks::read_definition;
use bulkhead_runtime::refused;
use bulkhead_store::Quota;
use serde_json::{Map, Value};

use crate::turn::Configured;

/// Of one refusal.
const LINES_MOST: usize = 200;
const MESSAGE_BYTES_MOST: usize = 64 * 1024;
/// Spellings of one field: who sets one takes the place of the other.
const SPELLINGS: [[&str; 2]; 3] = [["interval", "interval_s"], ["timeout", "timeout_ms"], ["site", "sites"]];
/// Fields of every definition; what else there is are options of its type.
const COMMON: [&str; 8] = ["name", "type", "target", "retries", "labels", "vantages", "paused", "options"];

/// What became of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Added,
    Changed,
    Removed,
    Paused,
    Resumed,
    Unchanged,
}

impl Act {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// One check after the change; nothing where it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub check: CheckName,
    pub act: Act,
    pub now: Option<Configured>,
}

/// What a change is judged by.
pub struct Judging<'a> {
    pub there: &'a BTreeMap<CheckName, Configured>,
    pub sites: &'a BTreeSet<SiteName>,
    pub quota: Option<Quota>,
}

/// What is wrong, and of which sort: the first that there is decides the code.
#[derive(Default)]
struct Wrong {
    invalid: Vec<String>,
    missing: Vec<String>,
    taken: Vec<String>,
    over: Vec<String>,
}

impl Wrong {
    fn into_error(self) -> Option<ReplyError> {
        let sorts = [
            (ErrorCode::Invalid, &self.invalid),
            (ErrorCode::NotFound, &self.missing),
            (ErrorCode::Conflict, &self.taken),
            (ErrorCode::OverQuota, &self.over),
        ];
        let code = sorts.iter().find(|(_, lines)| !lines.is_empty())?.0;
        let lines: Vec<&String> = sorts.iter().flat_map(|(_, lines)| lines.iter()).collect();
        Some(refused(code, joined(&lines)))
    }
}

/// As many lines as one answer holds.
fn joined(lines: &[&String]) -> String {
    let mut bytes = 0;
    let fits = lines.iter().take(LINES_MOST).take_while(|line| {
        bytes += line.len() + 1;
        bytes <= MESSAGE_BYTES_MOST
    });
    let mut shown: Vec<String> = fits.map(|line| (*line).clone()).collect();
    if shown.len() < lines.len() {
        shown.push(format!("and {} more", lines.len() - shown.len()));
    }
    shown.join("\n")
}

fn is_same(spelled: &str, other: &str) -> bool {
    spelled == other || SPELLINGS.iter().any(|pair| pair.contains(&spelled) && pair.contains(&other))
}

/// A definition with some fields set; `null` takes one back to its default.
fn edited(definition: &CheckDefinition, fields: &BTreeMap<String, Value>) -> Value {
    let Ok(Value::Object(mut value)) = serde_json::to_value(definition) else { return Value::Null };
    for (field, set) in fields {
        if field == "options" {
            let options = options_of(&mut value);
            options.extend(set.as_object().cloned().unwrap_or_default());
            options.retain(|_, option| !option.is_null());
            continue;
        }
        let is_option =
            !COMMON.contains(&field.as_str()) && !SPELLINGS.iter().any(|pair| pair.contains(&field.as_str()));
        if is_option {
            options_of(&mut value).remove(field);
        }
        value.retain(|there, _| !is_same(field, there));
        if !set.is_null() {
            value.insert(field.clone(), set.clone());
        }
    }
    Value::Object(value)
}

fn options_of(value: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let options = value.entry("options").or_insert_with(|| Value::Object(Map::new()));
    if !options.is_object() {
        *options = Value::Object(Map::new());
    }
    options.as_object_mut().expect("it was made one")
}

/// What is said of a site that a tenant has not.
#[must_use]
pub fn no_site(site: &SiteName, sites: &BTreeSet<SiteName>) -> String {
    let known: Vec<&str> = sites.iter().map(SiteName::as_str).collect();
    format!("there is no site \"{site}\": there are {}", known.join(", "))
}

struct Changing<'a> {
    judging: &'a Judging<'a>,
    now: BTreeMap<CheckName, CheckDefinition>,
    named: BTreeSet<CheckName>,
    wrong: Wrong,
}

/// What each check that is named becomes, and with `removes_others` those that are not.
///
/// # Errors
/// Everything that is wrong with any of it, a line each.
pub fn judge(judging: &Judging<'_>, changes: &[CheckChange], removes_others: bool) -> Result<Vec<Step>, ReplyError> {
    if changes.len() > CHANGES_MOST {
        let message =
            format!("{} changes at once: send at most {CHANGES_MOST}, one part after the other", changes.len());
        return Err(refused(ErrorCode::Invalid, message));
    }
    let there = judging.there.iter().map(|(name, there)| (name.clone(), there.definition.clone()));
    let mut changing = Changing { judging, now: there.collect(), named: BTreeSet::new(), wrong: Wrong::default() };
    changes.iter().for_each(|change| changing.apply(change));
    if removes_others {
        let Changing { now, named, .. } = &mut changing;
        now.retain(|name, _| named.contains(name));
    }
    changing.check_quota();
    let Changing { now, mut named, wrong, .. } = changing;
    if let Some(error) = wrong.into_error() {
        return Err(error);
    }
    if removes_others {
        named.extend(judging.there.keys().cloned());
    }
    Ok(named.into_iter().map(|name| step(judging.there.get(&name), now.get(&name), name)).collect())
}

fn step(before: Option<&Configured>, now: Option<&CheckDefinition>, check: CheckName) -> Step {
    let act = match (before, now) {
        (_, None) => Act::Removed,
        (None, Some(_)) => Act::Added,
        (Some(before), Some(now)) if before.definition == *now => Act::Unchanged,
        (Some(before), Some(now)) => {
            let turned = CheckDefinition { paused: now.paused, ..before.definition.clone() };
            match (turned == *now, now.paused) {
                (true, true) => Act::Paused,
                (true, false) => Act::Resumed,
                (false, _) => Act::Changed,
            }
        }
    };
    let revision = before.map_or(0, |before| before.revision) + i64::from(act != Act::Unchanged);
    Step { check, act, now: now.map(|now| Configured { definition: now.clone(), revision }) }
}

impl Changing<'_> {
    fn apply(&mut self, change: &CheckChange) {
        match change {
            CheckChange::Add { definition } => {
                if let Some(read) = self.read(definition) {
                    let name = &read.probe.name;
                    if self.judging.there.contains_key(name) {
                        self.wrong
                            .taken
                            .push(format!("check \"{name}\" is there already: edit it, or choose another name"));
                    }
                    self.put(read);
                }
            }
            CheckChange::Put { definition } => {
                if let Some(read) = self.read(definition) {
                    self.put(read);
                }
            }
            CheckChange::Edit { name, fields } => {
                let Some(there) = self.find(name) else { return };
                if fields.get("name").is_some_and(|new| new.as_str() != Some(name)) {
                    let line =
                        format!("check \"{name}\": name cannot be edited: add the check anew and remove this one");
                    self.wrong.invalid.push(line);
                    return;
                }
                if let Some(read) = self.read(&edited(&there, fields)) {
                    self.put(read);
                }
            }
            CheckChange::Remove { name } => {
                if let Some(there) = self.find(name) {
                    self.now.remove(&there.probe.name);
                    self.name_once(&there.probe.name);
                }
            }
            CheckChange::Pause { name } => self.set_paused(name, true),
            CheckChange::Resume { name } => self.set_paused(name, false),
        }
    }

    fn set_paused(&mut self, name: &str, paused: bool) {
        if let Some(there) = self.find(name) {
            self.put(CheckDefinition { paused, ..there });
        }
    }

    fn find(&mut self, name: &str) -> Option<CheckDefinition> {
        let found = name.parse::<CheckName>().ok().and_then(|name| self.judging.there.get(&name));
        if found.is_none() {
            let shown: String = name.chars().take(60).collect();
            self.wrong.missing.push(format!("check {shown:?} is not there"));
        }
        found.map(|there| there.definition.clone())
    }

    fn read(&mut self, definition: &Value) -> Option<CheckDefinition> {
        let read = self.read_one(definition);
        if read.is_none()
            && let Some(name) = definition.get("name").and_then(Value::as_str).and_then(|name| name.parse().ok())
        {
            self.name_once(&name);
        }
        read
    }

    fn read_one(&mut self, definition: &Value) -> Option<CheckDefinition> {
        self.look_for_sites(definition);
        match read_definition(definition) {
            Err(lines) => {
                self.wrong.invalid.extend(lines);
                None
            }
            // PostgreSQL keeps no text with it.
            Ok(read) if serde_json::to_string(&read).is_ok_and(|text| text.contains("\\u0000")) => {
                let line = format!("check \"{}\": a text has a zero character: leave it out", read.probe.name);
                self.wrong.invalid.push(line);
                None
            }
            Ok(read) => Some(read),
        }
    }

    /// Whatever else is wrong with a definition, the sites that it names are there or not.
    fn look_for_sites(&mut self, definition: &Value) {
        let name: String =
            definition.get("name").and_then(Value::as_str).unwrap_or_default().chars().take(60).collect();
        let several = definition.get("sites").and_then(Value::as_array).into_iter().flatten();
        let named = definition.get("site").into_iter().chain(several).filter_map(Value::as_str);
        let named: BTreeSet<SiteName> = named.filter_map(|site| site.parse().ok()).collect();
        let unknown = named.difference(self.judging.sites);
        self.wrong.invalid.extend(unknown.map(|site| format!("check {name:?}: {}", no_site(site, self.judging.sites))));
    }

    fn name_once(&mut self, name: &CheckName) {
        if !self.named.insert(name.clone()) {
            self.wrong.invalid.push(format!("check \"{name}\" is named by two changes: name it once"));
        }
    }

    fn put(&mut self, definition: CheckDefinition) {
        let name = definition.probe.name.clone();
        self.name_once(&name);
        self.now.insert(name, definition);
    }

    /// What was too much before and does not grow is let be: a plan may have become smaller.
    fn check_quota(&mut self) {
        let there = &self.judging.there;
        let changed: Vec<&CheckDefinition> = self
            .named
            .iter()
            .filter_map(|name| self.now.get(name))
            .filter(|now| there.get(&now.probe.name).is_none_or(|before| before.definition != **now))
            .filter(|now| !now.paused)
            .collect();
        let (before, now) = (there.len(), self.now.len());
        let over = &mut self.wrong.over;
        let Some(quota) = self.judging.quota else {
            if now > before {
                over.push("this tenant's plan says nothing of checks yet: ask the platform's people".to_owned());
            }
            return;
        };
        if now > before && now > count(quota.checks) {
            over.push(format!("the plan allows {} checks, there are {before}, and there would be {now}", quota.checks));
        }
        for definition in changed {
            let (name, interval_s, vantages) =
                (&definition.probe.name, definition.probe.interval_s, vantages_of(definition));
            if interval_s < u64::from(quota.interval_s_least) {
                let least = quota.interval_s_least;
                over.push(format!(
                    "check \"{name}\": interval of {interval_s} s: the plan allows {least} s at the least"
                ));
            }
            if vantages > u64::from(quota.vantages) {
                let most = quota.vantages;
                over.push(format!("check \"{name}\": {vantages} vantages: the plan allows {most} at most"));
            }
        }
        let runs_before = runs_per_minute(there.values().map(|there| &there.definition));
        let runs = runs_per_minute(self.now.values());
        if runs > runs_before && runs > u64::from(quota.runs_per_minute) {
            let most = quota.runs_per_minute;
            over.push(format!(
                "the plan allows {most} runs a minute at all vantages, there are {runs_before}, and there would be {runs}"
            ));
        }
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// At how many sites a check is run.
#[must_use]
pub fn vantages_of(definition: &CheckDefinition) -> u64 {
    let usual = if definition.sites.is_empty() { 1 } else { definition.sites.len() as u64 };
    definition.vantages.map_or(usual, u64::from)
}

/// Rounded up.
fn runs_per_minute<'a>(definitions: impl Iterator<Item = &'a CheckDefinition>) -> u64 {
    let running = definitions.filter(|definition| !definition.paused);
    let thousandths = running.map(|one| vantages_of(one).saturating_mul(60_000) / one.probe.interval_s.max(1));
    thousandths.fold(0, u64::saturating_add).div_ceil(1_000)
}

#[cfg(test)]
mod tests;
