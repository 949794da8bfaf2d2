//! What this poller is assigned, as a document: what it has, what a page changes of it, and the file it starts from when
//! nobody can be asked. Pure, but for reading and writing that file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulkhead_bus::CheckName;
use bulkhead_bus::payload::{AssignedCheck, AssignmentPage, EndedCheck};
use bulkhead_checks::CheckSpec;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::job::{Change, Job};
use crate::keep::{KeepError, put_private, read_private};
use crate::schedule::Term;

const FILE: &str = "assignment.json";
const DAMAGED: &str = "assignment.damaged.json";
/// Written while the process lives, so that the next one knows which slots nobody measured.
const ALIVE_FILE: &str = "alive";
const VERSION: u16 = 1;
/// What was measured so shortly before a process ended may not have reached the leaf.
const UNSAVED_MS: i64 = 30_000;

/// What was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    version: u16,
    generation: i64,
    checks: BTreeMap<CheckName, AssignedCheck>,
}

/// What this poller is assigned now.
pub(crate) struct Assigned {
    folder: PathBuf,
    document: Document,
    /// From when on this process runs what was assigned before it began.
    floor_ms: i64,
    /// Until when the process before it lived, as far as anybody knows.
    alive_ms: Option<i64>,
    /// Checks that this release cannot run, and what is in the way.
    refused: BTreeMap<CheckName, Vec<String>>,
}

/// All pages of one answer.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) generation: i64,
    pub(crate) is_whole: bool,
    pub(crate) checks: Vec<AssignedCheck>,
    pub(crate) ended: Vec<EndedCheck>,
}

impl Pages {
    /// Adds a page; `Err` when it is of another generation than those before.
    pub(crate) fn add(&mut self, page: AssignmentPage, is_first: bool) -> Result<(), i64> {
        if !is_first && page.generation != self.generation {
            return Err(page.generation);
        }
        (self.generation, self.is_whole) = (page.generation, page.is_whole);
        self.checks.extend(page.checks);
        self.ended.extend(page.ended);
        Ok(())
    }

    /// The last name so far, after which the next page begins.
    pub(crate) fn last_name(&self) -> Option<CheckName> {
        let begun = self.checks.iter().map(|check| &check.probe.name);
        begun.chain(self.ended.iter().map(|ended| &ended.check)).max().cloned()
    }
}

/// What is kept in `folder`; what cannot be read is set aside, and said.
fn read_document(folder: &Path) -> Option<Document> {
    let path = folder.join(FILE);
    let text = match read_private(&path) {
        Ok(text) => text?,
        Err(error) => {
            warn!(error = %bulkhead_runtime::Chain(&error), "the last assignment is not read: waiting for the hub");
            return None;
        }
    };
    match serde_json::from_str::<Document>(&text) {
        Ok(document) if document.version == VERSION => Some(document),
        found => {
            let why =
                found.map_or_else(|error| error.to_string(), |document| format!("its version is {}", document.version));
            // Kept for whoever wants to know; the hub has it all.
            let aside = std::fs::rename(&path, folder.join(DAMAGED));
            error!(
                is_set_aside = aside.is_ok(),
                why, "the last assignment is damaged: set aside as {DAMAGED}, waiting for the hub"
            );
            None
        }
    }
}

impl Assigned {
    /// What the process before had, with the changes that put it in force.
    pub(crate) fn recover(folder: &Path, now_ms: i64) -> (Self, Vec<Change>) {
        let alive = std::fs::read_to_string(folder.join(ALIVE_FILE)).ok().and_then(|text| text.trim().parse().ok());
        let document = read_document(folder).unwrap_or_default();
        let mut this = Self {
            folder: folder.to_owned(),
            document: Document { version: VERSION, ..Document::default() },
            floor_ms: now_ms,
            alive_ms: alive.filter(|alive_ms| *alive_ms <= now_ms),
            refused: BTreeMap::new(),
        };
        // What was owed then was said then.
        let known = document.checks.into_values().map(|check| AssignedCheck { owed_from_ms: None, ..check }).collect();
        let pages = Pages { generation: document.generation, is_whole: true, checks: known, ended: Vec::new() };
        let changes = this.apply(pages, now_ms);
        (this, changes)
    }

    pub(crate) fn generation(&self) -> i64 {
        self.document.generation
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.document.checks.is_empty()
    }

    /// How many have no end, and when the last of the others ends; 0 where there are none.
    pub(crate) fn lasting(&self) -> (usize, i64) {
        let ends = self.document.checks.values().filter_map(|check| check.until_ms);
        (self.document.checks.values().filter(|check| check.until_ms.is_none()).count(), ends.max().unwrap_or(0))
    }

    pub(crate) fn refused(&self) -> usize {
        self.refused.len()
    }

    fn term_of(&self, assigned: &AssignedCheck, job: Arc<Job>) -> Term<Arc<Job>> {
        let from_ms = assigned.from_ms.max(self.floor_ms);
        let lived_ms = self.alive_ms.unwrap_or(self.floor_ms).saturating_sub(UNSAVED_MS);
        let own_ms = (assigned.from_ms < self.floor_ms).then(|| assigned.from_ms.max(lived_ms));
        let owed_from_ms = match (assigned.owed_from_ms, own_ms) {
            (Some(owed_ms), Some(own_ms)) => Some(owed_ms.min(own_ms)),
            (owed_ms, own_ms) => owed_ms.or(own_ms),
        };
        // Without a word of the process before there is nothing to owe but what the hub says.
        let owed_from_ms = if self.alive_ms.is_some() { owed_from_ms } else { assigned.owed_from_ms };
        Term { grid: job.check.grid, from_ms, until_ms: assigned.until_ms, owed_from_ms, job }
    }

    fn put(&mut self, assigned: AssignedCheck, changes: &mut Vec<Change>) {
        let name = assigned.probe.name.clone();
        if self.document.checks.get(&name) == Some(&assigned) {
            return;
        }
        match CheckSpec::of_probe(&assigned.probe) {
            Ok(check) => {
                self.refused.remove(&name);
                let job = Job { check, generation: assigned.generation, secrets: assigned.secrets.clone() };
                changes.push(Change::Put(self.term_of(&assigned, Arc::new(job))));
            }
            Err(problems) => {
                warn!(check = %name, ?problems, "check {name} cannot be run by this release");
                self.refused.insert(name.clone(), problems);
                changes.push(Change::End { check: name.clone(), until_ms: assigned.from_ms });
            }
        }
        self.document.checks.insert(name, assigned);
    }

    /// Puts an answer in force: what it changes of what is run.
    pub(crate) fn apply(&mut self, pages: Pages, now_ms: i64) -> Vec<Change> {
        self.document.checks.retain(|_, known| known.until_ms.is_none_or(|until_ms| until_ms > now_ms));
        let mut changes = Vec::new();
        let named: BTreeSet<CheckName> = pages.checks.iter().map(|check| check.probe.name.clone()).collect();
        for ended in pages.ended {
            let is_known =
                self.document.checks.get(&ended.check).is_some_and(|known| known.generation <= ended.generation);
            if is_known && !named.contains(&ended.check) {
                self.end(&ended.check, ended.until_ms, now_ms, &mut changes);
            }
        }
        for assigned in pages.checks {
            self.put(assigned, &mut changes);
        }
        if pages.is_whole {
            let gone: Vec<CheckName> =
                self.document.checks.keys().filter(|name| !named.contains(name)).cloned().collect();
            for name in gone {
                self.end(&name, now_ms, now_ms, &mut changes);
            }
        }
        self.document.generation = pages.generation;
        changes
    }

    fn end(&mut self, name: &CheckName, until_ms: i64, now_ms: i64, changes: &mut Vec<Change>) {
        changes.push(Change::End { check: name.clone(), until_ms });
        self.refused.remove(name);
        match self.document.checks.get_mut(name).filter(|_| until_ms > now_ms) {
            Some(known) => known.until_ms = Some(until_ms),
            None => drop(self.document.checks.remove(name)),
        }
    }

    /// Another process runs it: everything ends now, and is known still.
    pub(crate) fn suspend(&self, now_ms: i64) -> Vec<Change> {
        self.document.checks.keys().map(|check| Change::End { check: check.clone(), until_ms: now_ms }).collect()
    }

    /// Takes up what was suspended.
    pub(crate) fn resume(&mut self, now_ms: i64) -> Vec<Change> {
        // What passed meanwhile was another's.
        (self.floor_ms, self.alive_ms) = (now_ms, None);
        let known = std::mem::take(&mut self.document.checks);
        let mut changes = Vec::new();
        for check in known.into_values() {
            self.put(AssignedCheck { owed_from_ms: None, ..check }, &mut changes);
        }
        changes
    }

    /// # Errors
    /// When the file cannot be written; the one before is there still.
    pub(crate) fn save(&self) -> Result<(), KeepError> {
        let text = serde_json::to_vec(&self.document).expect("names are keys of JSON");
        put_private(&self.folder.join(FILE), &text)
    }
}

/// Notes that this process lives. It need not outlive the machine: then only more slots are said to be missed.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn note_alive(folder: &Path, now_ms: i64) -> std::io::Result<()> {
    let new = folder.join("alive.new");
    std::fs::write(&new, format!("{now_ms}\n"))?;
    std::fs::rename(new, folder.join(ALIVE_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::Probe;

    fn assigned(name: &str, generation: i64, from_ms: i64) -> AssignedCheck {
        let probe = Probe {
            name: name.parse().unwrap(),
            kind: "tcp".to_owned(),
            target: "127.0.0.1:1".to_owned(),
            interval_s: 10,
            timeout_ms: 1_000,
            retries: 0,
            options: BTreeMap::new(),
        };
        AssignedCheck { probe, generation, from_ms, until_ms: None, owed_from_ms: None, secrets: BTreeMap::new() }
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Put(term) => {
                    let (name, owed) = (&term.job.check.name, term.owed_from_ms);
                    format!(
                        "{name} g{} from {} until {:?} owed {owed:?}",
                        term.job.generation, term.from_ms, term.until_ms
                    )
                }
                Change::End { check, until_ms } => format!("{check} ends {until_ms}"),
            })
            .collect()
    }

    fn pages(generation: i64, is_whole: bool, checks: Vec<AssignedCheck>, ended: Vec<EndedCheck>) -> Pages {
        Pages { generation, is_whole, checks, ended }
    }

    fn ended(name: &str, generation: i64, until_ms: i64) -> EndedCheck {
        EndedCheck { check: name.parse().unwrap(), generation, until_ms }
    }

    #[test]
    fn a_delta_changes_what_it_names_and_a_whole_answer_all() {
        let folder = tempfile::tempdir().unwrap();
        let (mut has, changes) = Assigned::recover(folder.path(), 100_000);
        assert!(changes.is_empty() && has.is_empty());
        let both = || vec![assigned("a", 1, 103_000), assigned("b", 1, 103_000)];
        let changes = has.apply(pages(1, true, both(), vec![]), 100_000);
        assert_eq!(shown(&changes), ["a g1 from 103000 until None owed None", "b g1 from 103000 until None owed None"]);
        assert!(has.apply(pages(1, true, both(), vec![]), 110_000).is_empty(), "what is known changes nothing");
        // An edit: the old ends where the new begins.
        let edited = AssignedCheck { owed_from_ms: Some(90_000), ..assigned("a", 2, 120_000) };
        let changes =
            has.apply(pages(2, false, vec![edited], vec![ended("a", 1, 120_000), ended("b", 1, 125_000)]), 118_000);
        assert_eq!(shown(&changes), ["b ends 125000", "a g2 from 120000 until None owed Some(90000)"]);
        assert!(has.apply(pages(2, false, vec![], vec![ended("a", 1, 1)]), 119_000).is_empty(), "a newer one goes on");
        assert_eq!(has.generation(), 2);
        assert_eq!(shown(&has.apply(pages(3, true, vec![], vec![]), 130_000)), ["a ends 130000"]);
        assert!(has.is_empty());
    }

    #[test]
    fn the_next_process_goes_on_and_says_what_nobody_measured() {
        let folder = tempfile::tempdir().unwrap();
        let (mut has, _) = Assigned::recover(folder.path(), 100_000);
        let owed = AssignedCheck { owed_from_ms: Some(50_000), ..assigned("a", 7, 103_000) };
        has.apply(pages(7, true, vec![owed], vec![]), 100_000);
        has.save().unwrap();
        note_alive(folder.path(), 200_000).unwrap();
        let (has, changes) = Assigned::recover(folder.path(), 240_000);
        assert_eq!((has.generation(), has.is_empty()), (7, false));
        assert_eq!(shown(&changes), ["a g7 from 240000 until None owed Some(170000)"]);
        std::fs::remove_file(folder.path().join(ALIVE_FILE)).unwrap();
        let (_, changes) = Assigned::recover(folder.path(), 240_000);
        assert_eq!(shown(&changes), ["a g7 from 240000 until None owed None"]);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_nothing_is_assumed() {
        for text in ["", "{", "[]", r#"{"version":9,"generation":1,"checks":{}}"#] {
            let folder = tempfile::tempdir().unwrap();
            put_private(&folder.path().join(FILE), text.as_bytes()).unwrap();
            let (has, changes) = Assigned::recover(folder.path(), 1);
            assert!(changes.is_empty() && has.generation() == 0);
            assert_eq!(std::fs::read_to_string(folder.path().join(DAMAGED)).unwrap(), text);
            assert!(!folder.path().join(FILE).exists());
        }
    }

    #[test]
    fn what_cannot_be_run_is_named_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (mut has, _) = Assigned::recover(folder.path(), 1);
        let mut unknown = assigned("quic", 1, 5);
        unknown.probe.kind = "quic".to_owned();
        let changes = has.apply(pages(1, true, vec![unknown, assigned("web", 1, 5)], vec![]), 1);
        assert_eq!(shown(&changes), ["quic ends 5", "web g1 from 5 until None owed None"]);
        assert_eq!(has.refused(), 1);
    }

    #[test]
    fn a_fenced_process_stops_and_takes_up_later_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let (mut has, _) = Assigned::recover(folder.path(), 100_000);
        has.apply(pages(1, true, vec![assigned("a", 1, 103_000)], vec![]), 100_000);
        assert_eq!(shown(&has.suspend(150_000)), ["a ends 150000"]);
        assert_eq!(shown(&has.resume(200_000)), ["a g1 from 200000 until None owed None"]);
    }
}
