//! Which tokens were given out, and what became of them: one file each, `<home>/enrolments/<id>.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::EnrolmentError;
use crate::files::{read_state, remove_whole, write_secret};
use crate::up::Layout;

/// How long it is remembered what became of a token, in seconds after its end.
const REMEMBERED_S: i64 = 30 * 86_400;

/// What became of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TokenState {
    Open,
    Used {
        /// Unix seconds.
        at: i64,
        /// SHA-256 over the public keys that it was used for: the same device may ask again.
        keys: String,
        host: String,
        /// How often it was answered.
        answers: usize,
    },
    Withdrawn {
        /// Unix seconds.
        at: i64,
        why: String,
        /// Who had used it by then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        used_by: Option<String>,
    },
}

/// A token that was given out. The token itself is kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: Uuid,
    /// Such as `acme-corp/oslo/p1`.
    pub poller: String,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
    #[serde(flatten)]
    pub state: TokenState,
}

impl TokenRecord {
    #[must_use]
    pub fn is_open(&self, now_s: i64) -> bool {
        self.state == TokenState::Open && self.expires_at > now_s
    }
}

/// All tokens of a home.
#[derive(Debug, Clone)]
pub struct TokenBook {
    folder: PathBuf,
}

impl TokenBook {
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { folder: layout.enrolments() }
    }

    fn path(&self, id: &Uuid) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// # Errors
    /// When it is there and damaged.
    pub fn find(&self, id: &Uuid) -> Result<Option<TokenRecord>, EnrolmentError> {
        let path = self.path(id);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_state(&path).map_err(EnrolmentError::File)?;
        let damaged = |source| EnrolmentError::Damaged { path: path.display().to_string(), source };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// # Errors
    /// When it cannot be written; then the old one is still there.
    ///
    /// # Panics
    /// Never: a record serializes.
    pub fn write(&self, record: &TokenRecord) -> Result<(), EnrolmentError> {
        let text = serde_json::to_vec_pretty(record).expect("a record serializes");
        write_secret(&self.path(&record.id), &text).map_err(EnrolmentError::File)
    }

    /// Every token that is remembered and can be read; one that cannot opens nothing, and stops nobody else.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self) -> Result<Vec<TokenRecord>, EnrolmentError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(EnrolmentError::List)?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let name = entry.map_err(EnrolmentError::List)?.file_name();
            let id: Option<Uuid> = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            records.extend(id.and_then(|id| self.find(&id).ok().flatten()));
        }
        Ok(records)
    }

    /// Makes void what was given out, also for whoever has used it already and might ask again; says how many those were.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn withdraw(&self, is_meant: impl Fn(&str) -> bool, why: &str, now_s: i64) -> Result<usize, EnrolmentError> {
        let mut withdrawn = 0;
        for mut record in self.all()?.into_iter().filter(|record| is_meant(&record.poller)) {
            let used_by = match record.state {
                TokenState::Withdrawn { .. } => continue,
                TokenState::Used { host, .. } => Some(host),
                TokenState::Open => None,
            };
            record.state = TokenState::Withdrawn { at: now_s, why: why.to_owned(), used_by };
            self.write(&record)?;
            withdrawn += 1;
        }
        Ok(withdrawn)
    }

    /// The token that a poller can still use.
    ///
    /// # Errors
    /// When one is damaged.
    pub fn open_of(&self, poller: &str, now_s: i64) -> Result<Option<TokenRecord>, EnrolmentError> {
        Ok(self.all()?.into_iter().find(|record| record.poller == poller && record.is_open(now_s)))
    }

    /// Forgets those whose end is long past: they are refused by their own end.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn forget_old(&self, now_s: i64) -> Result<(), EnrolmentError> {
        for record in self.all()?.into_iter().filter(|record| record.expires_at + REMEMBERED_S < now_s) {
            remove_whole(&self.path(&record.id)).map_err(EnrolmentError::File)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_out_is_withdrawn_once_and_forgotten_late() {
        let home = tempfile::tempdir().unwrap();
        let book = TokenBook::new(&Layout::new(home.path().to_owned()));
        assert_eq!(book.all().unwrap(), []);
        let open = TokenRecord {
            id: Uuid::new_v4(),
            poller: "acme-corp/oslo/p1".to_owned(),
            issued_at: 0,
            expires_at: 100,
            state: TokenState::Open,
        };
        let used = TokenState::Used { at: 1, keys: "k".to_owned(), host: "h".to_owned(), answers: 1 };
        let used = TokenRecord { id: Uuid::new_v4(), state: used, ..open.clone() };
        for record in [&open, &used] {
            book.write(record).unwrap();
        }
        assert_eq!(book.open_of(&open.poller, 99).unwrap(), Some(open.clone()));
        assert_eq!(book.open_of(&open.poller, 100).unwrap(), None, "its end has come");
        let is_meant = |poller: &str| poller == "acme-corp/oslo/p1";
        std::fs::write(home.path().join("enrolments").join(format!("{}.json", Uuid::new_v4())), "{").unwrap();
        assert_eq!(book.withdraw(is_meant, "another one", 5).unwrap(), 2, "a damaged one stops nobody");
        assert_eq!(book.withdraw(is_meant, "another one", 6).unwrap(), 0);
        for (record, used_by) in [(&open, None), (&used, Some("h".to_owned()))] {
            let withdrawn = TokenState::Withdrawn { at: 5, why: "another one".to_owned(), used_by };
            assert_eq!(book.find(&record.id).unwrap().unwrap().state, withdrawn);
        }
        book.forget_old(100 + REMEMBERED_S).unwrap();
        assert_eq!(book.all().unwrap().len(), 2);
        book.forget_old(101 + REMEMBERED_S).unwrap();
        assert_eq!(book.all().unwrap(), []);
    }
}
