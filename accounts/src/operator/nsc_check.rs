//! What nsc, or anybody else, did to the store behind our back, and what nsc would stumble over.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::foreign::is_untrusted;
use super::nsc_layout::{files_in, folders_in};
use super::{OperatorError, OperatorStore};
use crate::keys::KeyError;
use crate::reason::reason;

/// What kind of trouble was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// Another tool changed an account that we render.
    ForeignEdit,
    /// Another tool made it; it is listed, kept and never touched.
    Unmanaged,
    Unreadable,
    /// No key of this operator signed it.
    Untrusted,
    /// The folder and the token say different names.
    Name,
    /// A folder where nsc expects none.
    Stray,
    Mode,
    /// A seed with a newline, of another key, or where nsc wants none.
    Seed,
}

impl DriftKind {
    /// Whether somebody has to do something about it.
    #[must_use]
    pub fn is_drift(self) -> bool {
        self != Self::Unmanaged
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    pub kind: DriftKind,
    /// An account, or a path below the store's folder.
    pub subject: String,
    pub found: String,
    pub advice: String,
}

impl OperatorStore {
    /// Looks at the whole store and changes nothing.
    #[must_use]
    pub fn check(&self) -> Vec<Drift> {
        let mut found = self.account_drift();
        found.extend(self.name_drift());
        found.extend(self.stray_drift());
        found.extend(self.file_drift());
        found.extend(self.seed_drift());
        found
    }

    fn account_drift(&self) -> Vec<Drift> {
        let names = self.account_names();
        let mut found: Vec<Drift> = names.iter().filter_map(|name| self.drift_of(name)).collect();
        // A book whose account is gone: nsc removed it.
        for path in files_in(&self.paths.books(), "json") {
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            if !names.iter().any(|known| known == name) {
                found.extend(self.drift_of(name));
            }
        }
        found
    }

    fn drift_of(&self, name: &str) -> Option<Drift> {
        let drift = |kind, found: String, advice: String| Some(Drift { kind, subject: name.to_owned(), found, advice });
        match self.hold(name) {
            Ok(held) => {
                let record = held.record?;
                let folder = self.paths.folder_name(name);
                if record.claims.name != folder {
                    let found = format!("its token says {:?}, its folder {folder:?}", record.claims.name);
                    return drift(DriftKind::Name, found, "give the folder and its token the name in the token".into());
                }
                let is_managed = held.book.is_some_and(|book| book.managed);
                let advice = format!("nothing to do; `bulkhead nsc import --adopt {name}` hands it over to us");
                if is_managed { None } else { drift(DriftKind::Unmanaged, "another tool made it".into(), advice) }
            }
            Err(OperatorError::ForeignEdit { differences, .. }) => {
                let advice = format!(
                    "`bulkhead nsc import --accept {name}` takes the change, `bulkhead nsc restore {name}` takes it back"
                );
                let found = if differences.is_empty() {
                    "signed anew with the same content".to_owned()
                } else {
                    differences.join("; ")
                };
                drift(DriftKind::ForeignEdit, found, advice)
            }
            Err(error) if is_untrusted(&error) => {
                drift(DriftKind::Untrusted, reason(&error), format!("`bulkhead nsc restore {name}`, or a backup"))
            }
            Err(OperatorError::NoAccount(_)) => None,
            Err(error) => drift(DriftKind::Unreadable, reason(&error), format!("`bulkhead nsc restore {name}`")),
        }
    }

    /// nsc compares account names without regard to case.
    fn name_drift(&self) -> Vec<Drift> {
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for folder in folders_in(&self.paths.accounts()) {
            by_name.entry(folder.to_lowercase()).or_default().push(folder);
        }
        let clashes = by_name.into_values().filter(|names| names.len() > 1);
        let drift = |names: Vec<String>| Drift {
            kind: DriftKind::Name,
            subject: names.join(", "),
            found: "names that differ in case only".to_owned(),
            advice: "rename one: nsc takes them for the same".to_owned(),
        };
        clashes.map(drift).collect()
    }

    fn stray_drift(&self) -> Vec<Drift> {
        let accounts = self.paths.accounts();
        let strays = folders_in(&accounts).into_iter().filter(|name| {
            let is_known = self.paths.book(self.paths.account_name(name)).is_ok_and(|book| book.exists());
            !is_known && !accounts.join(name).join(format!("{name}.jwt")).exists()
        });
        let stray = |path: PathBuf, found: &str, advice: &str| Drift {
            kind: DriftKind::Stray,
            subject: self.shown(&path),
            found: found.to_owned(),
            advice: advice.to_owned(),
        };
        let mut found: Vec<Drift> = strays
            .map(|name| {
                stray(accounts.join(name), "a folder without a token", "remove it: nsc cannot add users beside it")
            })
            .collect();
        let stores = self.paths.folder().join("stores");
        let others = folders_in(&stores).into_iter().filter(|name| name != self.name());
        found.extend(others.map(|name| {
            stray(stores.join(name), "a folder that is no operator's", "move it elsewhere: `nats auth` fails on it")
        }));
        found
    }

    fn file_drift(&self) -> Vec<Drift> {
        let mut found = Vec::new();
        for root in [self.paths.folder().join("stores"), self.paths.keys(), self.paths.books()] {
            walk(&root, &mut |path, is_folder| {
                let mode = std::fs::metadata(path).map_or(0, |data| data.permissions().mode() & 0o777);
                if mode & 0o077 != 0 {
                    let right = if is_folder { "700" } else { "600" };
                    found.push(Drift {
                        kind: DriftKind::Mode,
                        subject: self.shown(path),
                        found: format!("mode {mode:03o}: others can read it"),
                        advice: format!("run chmod {right} {}", path.display()),
                    });
                }
            });
        }
        found
    }

    fn seed_drift(&self) -> Vec<Drift> {
        let mut found = Vec::new();
        let keys = self.paths.keys();
        let drift = |path: &Path, found: &str, advice: &str| Drift {
            kind: DriftKind::Seed,
            subject: self.shown(path),
            found: found.to_owned(),
            advice: advice.to_owned(),
        };
        walk(&keys, &mut |path, _| {
            let is_secret = path.extension().is_some_and(|ending| ending == "nk" || ending == "creds");
            let is_placed = path.starts_with(keys.join("keys")) || path.starts_with(keys.join("creds"));
            if is_secret && !is_placed {
                found.push(drift(path, "a secret outside keys/ and creds/", "move it: nsc refuses to work until then"));
            }
        });
        for public in self.keys.seeds() {
            let Ok(path) = self.keys.path(&public) else { continue };
            let Ok(text) = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new) else { continue };
            if text.ends_with('\n') {
                found.push(drift(&path, "a newline behind the seed", "remove it: nsc takes it for another key"));
            }
            let kind = bulkhead_claims::KeyKind::of_public(&public);
            // A seed that others can read is told with its mode.
            let is_other =
                |kind| matches!(self.keys.read(&public, kind), Err(KeyError::Kind { .. } | KeyError::Name { .. }));
            if kind.is_some_and(is_other) {
                found.push(drift(&path, "it does not hold the seed of this key", "restore it from a backup"));
            }
        }
        found
    }

    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(self.paths.folder()).unwrap_or(path).display().to_string()
    }
}

/// Every file and folder below a folder, the folder itself first.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path, bool)) {
    let Ok(data) = std::fs::symlink_metadata(path) else { return };
    visit(path, data.is_dir());
    if data.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            walk(&entry.path(), visit);
        }
    }
}
