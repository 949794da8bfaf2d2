//! What is wrong with claims, and how bad it is.

use std::fmt;

use super::Profile;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Nothing that trusts such claims may be signed, stored or pushed.
    Blocking,
    /// Not valid now, but at another time.
    Time,
    /// Works, and somebody should look at it.
    Warning,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blocking => "blocking",
            Self::Time => "time",
            Self::Warning => "warning",
        })
    }
}

/// One thing that is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    pub level: Level,
    /// Such as `exports[2].subject`.
    pub path: String,
    /// The value, the rule and the way out.
    pub message: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.level, self.path, self.message)
    }
}

/// Collects issues for one profile.
pub(crate) struct Issues {
    pub(crate) profile: Profile,
    pub(crate) found: Vec<Issue>,
}

impl Issues {
    pub(crate) fn new(profile: Profile) -> Self {
        Self { profile, found: Vec::new() }
    }

    fn add(&mut self, level: Level, path: &str, message: impl Into<String>) {
        self.found.push(Issue { level, path: path.to_owned(), message: message.into() });
    }

    /// A check of the Go library's.
    pub(crate) fn block(&mut self, path: &str, message: impl Into<String>) {
        self.add(Level::Blocking, path, message);
    }

    /// A check of our own: others' claims are only warned about.
    pub(crate) fn ours(&mut self, path: &str, message: impl Into<String>) {
        let level = match self.profile {
            Profile::Library => Level::Warning,
            Profile::Ours => Level::Blocking,
        };
        self.add(level, path, message);
    }

    pub(crate) fn warn(&mut self, path: &str, message: impl Into<String>) {
        self.add(Level::Warning, path, message);
    }

    pub(crate) fn time(&mut self, path: &str, message: impl Into<String>) {
        self.add(Level::Time, path, message);
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.profile == Profile::Ours
    }
}
