//! What was looked at, by which rule, and what was seen. A look is known by a stable word; `docs/doctor.md` lists them all.
//!
//! A finding says what to do and never holds a secret: values are paths, names, modes, versions and times.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// What belongs together for whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    Links,
    Versions,
    Clock,
    Certificates,
    Disks,
    Streams,
    Lag,
    Drift,
    Permissions,
}

impl Area {
    /// In the order in which they are shown: what runs comes first, because the rest follows from it.
    pub const ALL: [Self; 9] = [
        Self::Links,
        Self::Versions,
        Self::Clock,
        Self::Certificates,
        Self::Disks,
        Self::Streams,
        Self::Lag,
        Self::Drift,
        Self::Permissions,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Versions => "versions",
            Self::Clock => "clock",
            Self::Certificates => "certificates",
            Self::Disks => "disks",
            Self::Streams => "streams",
            Self::Lag => "lag",
            Self::Drift => "drift",
            Self::Permissions => "permissions",
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text is not an area.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no area {text:?}: choose {}", Area::ALL.map(Area::as_str).join(", "))]
pub struct AreaError {
    text: String,
}

impl FromStr for Area {
    type Err = AreaError;

    fn from_str(text: &str) -> Result<Self, AreaError> {
        let named = Self::ALL.into_iter().find(|area| area.as_str() == text);
        named.ok_or_else(|| AreaError { text: text.chars().take(60).collect() })
    }
}

/// How well it is, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Not looked at, for a reason that is a finding of its own or that nothing can be done about.
    Skip,
    /// Will hurt, or has begun to.
    Warn,
    /// Results are late, lost or open to somebody now.
    Fail,
}

impl Level {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skip => "skip",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One kind of look: its word, its rule, and what it means when the rule is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Look {
    pub area: Area,
    pub name: &'static str,
    pub rule: &'static str,
    pub meaning: &'static str,
}

/// What one look saw of one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub look: &'static Look,
    /// What was looked at, such as a file, a server or a table.
    pub subject: String,
    pub level: Level,
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub advice: String,
}

impl Look {
    fn finding(&'static self, level: Level, subject: &str, found: String, advice: String) -> Finding {
        Finding { look: self, subject: subject.to_owned(), level, found, advice }
    }

    pub(super) fn ok(&'static self, subject: &str, found: impl Into<String>) -> Finding {
        self.finding(Level::Ok, subject, found.into(), String::new())
    }

    pub(super) fn skip(&'static self, subject: &str, why: impl Into<String>) -> Finding {
        self.finding(Level::Skip, subject, why.into(), String::new())
    }

    pub(super) fn warn(&'static self, subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        self.finding(Level::Warn, subject, found.into(), advice.into())
    }

    pub(super) fn fail(&'static self, subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        self.finding(Level::Fail, subject, found.into(), advice.into())
    }

    /// `ok` at that level, otherwise with what to do.
    pub(super) fn at(&'static self, level: Level, subject: &str, found: String, advice: &str) -> Finding {
        let advice = if level == Level::Ok { String::new() } else { advice.to_owned() };
        self.finding(level, subject, found, advice)
    }
}

/// A finding as a program reads it.
#[derive(Serialize)]
struct Line<'a> {
    area: Area,
    look: &'a str,
    subject: &'a str,
    level: Level,
    found: &'a str,
    rule: &'a str,
    meaning: &'a str,
    advice: &'a str,
}

impl Serialize for Finding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let line = Line {
            area: self.look.area,
            look: self.look.name,
            subject: &self.subject,
            level: self.level,
            found: &self.found,
            rule: self.look.rule,
            meaning: self.look.meaning,
            advice: &self.advice,
        };
        line.serialize(serializer)
    }
}

/// More broken ones of a kind say nothing new.
const SHOWN_MOST: usize = 20;

/// One finding for each of `count` that is broken, or one that says that all are right.
pub(super) fn summed(look: &'static Look, subject: &str, count: usize, mut broken: Vec<Finding>) -> Vec<Finding> {
    if broken.is_empty() {
        return vec![look.ok(subject, format!("all {count} are right"))];
    }
    let more = broken.len().saturating_sub(SHOWN_MOST);
    broken.truncate(SHOWN_MOST);
    if more > 0 {
        broken.push(look.fail(subject, format!("{more} more"), "mend those that are named, then look again"));
    }
    broken
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// The worst level of all.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// What was seen in one area, the worst first.
    #[must_use]
    pub fn of(&self, area: Area) -> Vec<&Finding> {
        let mut found: Vec<&Finding> = self.findings.iter().filter(|finding| finding.look.area == area).collect();
        found.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_round_trip_and_a_wrong_one_names_the_right_ones() {
        for area in Area::ALL {
            assert_eq!(area.as_str().parse(), Ok(area));
            assert_eq!(serde_json::to_value(area).unwrap(), area.as_str());
        }
        let error = "disk".parse::<Area>().unwrap_err().to_string();
        assert!(error.contains("\"disk\"") && error.contains("disks"), "{error}");
    }

    static SAMPLE: Look = Look { area: Area::Disks, name: "sample", rule: "a rule", meaning: "a meaning" };

    #[test]
    fn a_line_has_stable_words() {
        let line = serde_json::to_value(SAMPLE.warn("here", "3 %", "make room")).unwrap();
        let expected = serde_json::json!({"area": "disks", "look": "sample", "subject": "here", "level": "warn",
            "found": "3 %", "rule": "a rule", "meaning": "a meaning", "advice": "make room"});
        assert_eq!(line, expected);
    }

    #[test]
    fn many_broken_ones_are_summed_up() {
        let broken = |count: usize| (0..count).map(|n| SAMPLE.fail(&n.to_string(), "open", "close")).collect();
        assert_eq!(summed(&SAMPLE, "files", 50, vec![])[0].level, Level::Ok);
        assert_eq!(summed(&SAMPLE, "files", 50, broken(3)).len(), 3);
        let many = summed(&SAMPLE, "files", 50, broken(45));
        assert_eq!((many.len(), many[20].found.as_str()), (21, "25 more"));
    }

    #[test]
    fn the_worst_decides_and_comes_first() {
        let mut report = Report::default();
        assert_eq!(report.worst(), Level::Ok);
        report.findings = vec![SAMPLE.skip("a", "away"), SAMPLE.ok("b", "fine")];
        assert_eq!(report.worst(), Level::Skip);
        report.findings.push(SAMPLE.fail("c", "gone", "mend it"));
        assert_eq!((report.worst(), report.count(Level::Ok)), (Level::Fail, 1));
        let levels: Vec<Level> = report.of(Area::Disks).iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Fail, Level::Skip, Level::Ok]);
        assert!(report.of(Area::Lag).is_empty());
    }
}
