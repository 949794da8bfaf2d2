//! The journal of provisioning: an act is written down before it begins and after each step, so that one that was cut
//! short is seen and finished or undone. What is done is kept as a history.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{FileError, make_folder, read_state};
use crate::up::Layout;

/// Why an act was not written down. Then it is not done either.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal")]
    File(#[source] FileError),
    #[error("write {path}: free some space on its disk, and say the command again")]
    Write { path: String, source: std::io::Error },
    #[error("{path} is damaged in line {line}: restore it from a backup, or move it away when nothing is under way")]
    Damaged { path: String, line: usize },
}

/// What is done to a tenant or another part of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    AddTenant,
    UndoTenant,
    ChangeTenant,
    SuspendTenant,
    ResumeTenant,
    OffboardTenant,
    RestoreTenant,
    PurgeTenant,
    RestoreRows,
    CopyRows,
    RotateRole,
    AddPerson,
    RevokePerson,
    AddSite,
    RemoveSite,
    AddPoller,
    InvitePoller,
    EnrolPoller,
    RenewPoller,
    ChangePoller,
    RemovePoller,
    PushAccounts,
}

impl Act {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddTenant => "add-tenant",
            Self::UndoTenant => "undo-tenant",
            Self::ChangeTenant => "change-tenant",
            Self::SuspendTenant => "suspend-tenant",
            Self::ResumeTenant => "resume-tenant",
            Self::OffboardTenant => "offboard-tenant",
            Self::RestoreTenant => "restore-tenant",
            Self::PurgeTenant => "purge-tenant",
            Self::RestoreRows => "restore-rows",
            Self::CopyRows => "copy-rows",
            Self::RotateRole => "rotate-role",
            Self::AddPerson => "add-person",
            Self::RevokePerson => "revoke-person",
            Self::AddSite => "add-site",
            Self::RemoveSite => "remove-site",
            Self::AddPoller => "add-poller",
            Self::InvitePoller => "invite-poller",
            Self::EnrolPoller => "enrol-poller",
            Self::RenewPoller => "renew-poller",
            Self::ChangePoller => "change-poller",
            Self::RemovePoller => "remove-poller",
            Self::PushAccounts => "push-accounts",
        }
    }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Unix seconds.
    pub at: i64,
    pub act: Act,
    /// Whom it is about: a slug, or `acme-corp/oslo/p1`.
    pub about: String,
    /// `begun`, the steps in their order, and `done`.
    pub step: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

const BEGUN: &str = "begun";
const DONE: &str = "done";

/// Acts that are under way, one file each, and the history of those that are done.
#[derive(Debug, Clone)]
pub struct Journal {
    folder: PathBuf,
}

/// An act that is under way. Dropped without [`OpenAct::finish`] it stays open.
#[derive(Debug)]
pub struct OpenAct {
    file: File,
    path: PathBuf,
    history: PathBuf,
    pub lines: Vec<Line>,
}

impl Journal {
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { folder: layout.journal() }
    }

    fn open_folder(&self) -> PathBuf {
        self.folder.join("open")
    }

    fn path(&self, act: Act, about: &str) -> PathBuf {
        self.open_folder().join(format!("{}.{}.jsonl", act.as_str(), about.replace('/', "+")))
    }

    /// Writes down that an act begins, or takes up the one of the same name that was cut short.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing may be done.
    pub fn begin(&self, act: Act, about: &str, detail: Value, now: i64) -> Result<OpenAct, JournalError> {
        make_folder(&self.open_folder()).map_err(JournalError::File)?;
        let path = self.path(act, about);
        let Whole { lines, length } = if path.exists() { read_lines(&path)? } else { Whole::default() };
        let failed = |source| JournalError::Write { path: path.display().to_string(), source };
        let mut options = OpenOptions::new();
        let opened = options.create(true).mode(0o600).write(true).truncate(false).open(&path);
        let mut file = opened.map_err(failed)?;
        // What a crash has left of a torn line goes. Taking away needs no room on the disk, writing anew would.
        file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length))).map_err(failed)?;
        let is_new = lines.is_empty();
        let mut open = OpenAct { file, path, history: self.folder.join("history.jsonl"), lines };
        if is_new {
            let first = Line { at: now, act, about: about.to_owned(), step: BEGUN.to_owned(), detail };
            if let Err(error) = open.append(first) {
                // An act that was not written down was not begun.
                let _ = std::fs::remove_file(&open.path);
                return Err(error);
            }
        }
        let folder = File::open(self.open_folder()).and_then(|folder| folder.sync_all());
        folder.map_err(|source| JournalError::Write { path: open.path.display().to_string(), source })?;
        Ok(open)
    }

    /// Acts that were begun and are neither done nor undone, by their first lines, oldest first.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn under_way(&self) -> Result<Vec<Vec<Line>>, JournalError> {
        let Ok(entries) = std::fs::read_dir(self.open_folder()) else { return Ok(vec![]) };
        let mut acts = Vec::new();
        for entry in entries.flatten() {
            let lines = read_lines(&entry.path())?.lines;
            if !lines.is_empty() {
                acts.push(lines);
            }
        }
        acts.sort_by_key(|lines| lines.first().map_or(0, |line| line.at));
        Ok(acts)
    }

    /// The act of this name that is under way.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn find(&self, act: Act, about: &str) -> Result<Option<Vec<Line>>, JournalError> {
        let path = self.path(act, about);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(read_lines(&path)?.lines).filter(|lines| !lines.is_empty()))
    }

    /// Forgets an act that was undone.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget(&self, act: Act, about: &str) -> Result<(), JournalError> {
        let path = self.path(act, about);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(JournalError::Write { path: path.display().to_string(), source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Journal {
    /// Forgets every act that was begun about a tenant that is gone, its sites and people included.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget_tenant(&self, slug: &str) -> Result<(), JournalError> {
        for lines in self.under_way()? {
            let Some(first) = lines.first() else { continue };
            if first.about.split('/').next() == Some(slug) {
                self.forget(first.act, &first.about)?;
            }
        }
        Ok(())
    }
}

impl OpenAct {
    fn append(&mut self, line: Line) -> Result<(), JournalError> {
        let failed = |source| JournalError::Write { path: self.path.display().to_string(), source };
        append_line(&mut self.file, &line).map_err(failed)?;
        self.lines.push(line);
        Ok(())
    }

    /// Writes down that a step is done.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn step(&mut self, step: &str, now: i64) -> Result<(), JournalError> {
        self.step_with(step, Value::Null, now)
    }

    /// Writes down that a step is done, and what came of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn step_with(&mut self, step: &str, detail: Value, now: i64) -> Result<(), JournalError> {
        let Some(first) = self.lines.first() else { return Ok(()) };
        let line = Line { at: now, act: first.act, about: first.about.clone(), step: step.to_owned(), detail };
        self.append(line)
    }

    #[must_use]
    pub fn is_done(&self, step: &str) -> bool {
        self.lines.iter().any(|line| line.step == step)
    }

    /// What the act was begun with.
    #[must_use]
    pub fn detail(&self) -> &Value {
        self.lines.first().map_or(&Value::Null, |line| &line.detail)
    }

    /// Moves the act to the history.
    ///
    /// # Errors
    /// When the history cannot be written; the act stays open.
    pub fn finish(self, detail: Value, now: i64) -> Result<(), JournalError> {
        let Some(first) = self.lines.first() else { return Ok(()) };
        let line = Line { at: now, act: first.act, about: first.about.clone(), step: DONE.to_owned(), detail };
        let path = self.history.display().to_string();
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.history);
        let written = opened.and_then(|mut file| append_line(&mut file, &line));
        written.map_err(|source| JournalError::Write { path, source })?;
        let removed = std::fs::remove_file(&self.path);
        removed.map_err(|source| JournalError::Write { path: self.path.display().to_string(), source })
    }
}

/// Appends a line whole, or not at all: half of one would be glued to the next.
fn append_line(file: &mut File, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line).map_err(std::io::Error::other)?;
    text.push(b'\n');
    let before = file.metadata()?.len();
    let written = file.write_all(&text).and_then(|()| file.sync_data());
    if written.is_err() {
        // The first error says what is wrong.
        let _ = file.set_len(before).and_then(|()| file.seek(SeekFrom::Start(before)));
    }
    written
}

/// All whole lines, and how long they are together.
#[derive(Default)]
struct Whole {
    lines: Vec<Line>,
    length: u64,
}

/// A last line that was torn by a crash was never acted on, and is left out.
fn read_lines(path: &Path) -> Result<Whole, JournalError> {
    let text = read_state(path).map_err(JournalError::File)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let mut lines = Vec::new();
    for (index, line) in whole.lines().enumerate() {
        let damaged = |_| JournalError::Damaged { path: path.display().to_string(), line: index + 1 };
        lines.push(serde_json::from_str(line).map_err(damaged)?);
    }
    Ok(Whole { lines, length: whole.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn journal() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(&Layout::new(folder.path().to_owned()));
        (folder, journal)
    }

    #[test]
    fn an_act_that_was_cut_short_is_taken_up_where_it_was() {
        let (_folder, journal) = journal();
        let mut act = journal.begin(Act::AddTenant, "acme-corp", json!({"plan": "pro@1"}), 7).unwrap();
        act.step("keys", 8).unwrap();
        let path = act.path.clone();
        drop(act);
        let mut torn = std::fs::read(&path).unwrap();
        let whole = torn.len();
        torn.extend(b"{\"at\":9,\"act\":\"add-ten");
        std::fs::write(&path, torn).unwrap();
        assert_eq!(journal.under_way().unwrap().len(), 1);
        let mut again = journal.begin(Act::AddTenant, "acme-corp", json!({"plan": "free@1"}), 10).unwrap();
        assert!(again.is_done("keys") && !again.is_done("push"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), whole as u64, "the torn line goes, and nothing else");
        assert_eq!(again.detail(), &json!({"plan": "pro@1"}), "what it was begun with");
        again.step("push", 11).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        again.finish(Value::Null, 12).unwrap();
        assert_eq!(journal.under_way().unwrap(), Vec::<Vec<Line>>::new());
        assert_eq!(journal.find(Act::AddTenant, "acme-corp").unwrap(), None);
        assert!(std::fs::read_to_string(journal.folder.join("history.jsonl")).unwrap().contains("\"done\""));
    }

    #[test]
    fn a_damaged_line_is_named_and_not_skipped() {
        let (_folder, journal) = journal();
        drop(journal.begin(Act::AddTenant, "acme-corp", Value::Null, 7).unwrap());
        let path = journal.path(Act::AddTenant, "acme-corp");
        std::fs::write(&path, "{}\n").unwrap();
        let error = journal.begin(Act::AddTenant, "acme-corp", Value::Null, 8).unwrap_err().to_string();
        assert!(error.contains("add-tenant.acme-corp.jsonl is damaged in line 1"), "{error}");
        journal.forget(Act::AddTenant, "acme-corp").unwrap();
        assert!(journal.begin(Act::AddTenant, "acme-corp", Value::Null, 8).is_ok());
    }
}
