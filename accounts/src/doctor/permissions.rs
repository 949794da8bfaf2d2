//! Who may read secrets and write what the deployment reads: modes and owners of files and folders.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{Area, Finding, Look, summed};
use super::home::Home;
use crate::up::database_folder;

static SECRET: Look = Look {
    area: Area::Permissions,
    name: "secret-mode",
    rule: "a file with a secret has mode 600",
    meaning: "other users of this machine can sign, connect or read the database as this deployment; services refuse to start on it",
};
static FOLDER: Look = Look {
    area: Area::Permissions,
    name: "secret-folder",
    rule: "a folder with secrets below it has mode 700",
    meaning: "other users of this machine can see what is there, and read what is written carelessly",
};
static OWNER: Look = Look {
    area: Area::Permissions,
    name: "secret-owner",
    rule: "a file with a secret belongs to the owner of the state folder",
    meaning: "whoever owns it can replace it, or the next start cannot read it",
};
static WRITABLE: Look = Look {
    area: Area::Permissions,
    name: "writable-by-others",
    rule: "nobody but its owner may write a file or folder of the deployment",
    meaning: "other users of this machine can change configuration, certificates or who is trusted",
};
static DATABASE: Look = Look {
    area: Area::Permissions,
    name: "database-folder",
    rule: "the database's folder has mode 700",
    meaning: "other users of this machine can copy every tenant's rows; PostgreSQL refuses to start on it",
};

pub(super) const LOOKS: &[&Look] = &[&SECRET, &FOLDER, &OWNER, &WRITABLE, &DATABASE];

const SECRET_ENDS: [&str; 5] = ["nk", "key", "creds", "password", "url"];

fn is_secret(path: &Path) -> bool {
    path.extension().is_some_and(|end| SECRET_ENDS.iter().any(|secret| end == *secret))
}

fn mode(data: &Metadata) -> u32 {
    data.mode() & 0o777
}

/// What was read of one entry of the state folder.
struct Entry {
    path: PathBuf,
    data: Metadata,
}

fn read_entries(home: &Home) -> Vec<Entry> {
    let read = |path: PathBuf| fs::metadata(&path).ok().map(|data| Entry { path, data });
    home.entries().into_iter().filter_map(read).collect()
}

/// Folders between the state folder and each secret.
fn folders_of_secrets(home: &Path, secrets: &[&Entry]) -> BTreeSet<PathBuf> {
    let above = |entry: &&Entry| {
        let folders = entry.path.ancestors().skip(1).take_while(|folder| *folder != home);
        folders.map(Path::to_owned).collect::<Vec<_>>()
    };
    secrets.iter().flat_map(above).collect()
}

fn mode_findings(
    home: &Home,
    look: &'static Look,
    kind: (&str, u32),
    entries: &[(PathBuf, u32)],
    forbidden: u32,
) -> Vec<Finding> {
    let (subject, expected) = kind;
    let broken = entries.iter().filter(|(_, mode)| mode & forbidden != 0).map(|(path, mode)| {
        let advice = format!("chmod {expected:o} {}", path.display());
        look.fail(&home.shown(path), format!("mode {mode:03o}"), advice)
    });
    summed(look, subject, entries.len(), broken.collect())
}

fn writable_findings(home: &Home, entries: &[(PathBuf, u32)]) -> Vec<Finding> {
    let broken = entries.iter().filter(|(_, mode)| mode & 0o022 != 0).map(|(path, mode)| {
        WRITABLE.fail(&home.shown(path), format!("mode {mode:03o}"), format!("chmod go-w {}", path.display()))
    });
    summed(&WRITABLE, "files and folders", entries.len(), broken.collect())
}

fn owner_findings(home: &Home, owner: u32, secrets: &[&Entry]) -> Vec<Finding> {
    let is_foreign = |entry: &&&Entry| entry.data.uid() != owner;
    let broken = secrets.iter().filter(is_foreign).map(|entry| {
        let found = format!("it belongs to user {}, the state folder to user {owner}", entry.data.uid());
        OWNER.fail(&home.shown(&entry.path), found, format!("chown {owner} {}", entry.path.display()))
    });
    summed(&OWNER, "secrets", secrets.len(), broken.collect())
}

fn database_finding(folder: &Path) -> Finding {
    match fs::metadata(folder) {
        Err(error) => DATABASE.skip("database", format!("{}: {error}", folder.display())),
        Ok(data) if mode(&data) & 0o077 == 0 => DATABASE.ok("database", format!("{:03o}", mode(&data))),
        Ok(data) => {
            let advice = format!("chmod 700 {}", folder.display());
            DATABASE.fail("database", format!("{} has mode {:03o}", folder.display(), mode(&data)), advice)
        }
    }
}

pub(super) fn look(home: &Home) -> Vec<Finding> {
    let root = home.layout.home();
    let Ok(owner) = fs::metadata(root).map(|data| data.uid()) else {
        return vec![SECRET.fail(&root.display().to_string(), "it cannot be read", "ask as its owner, or as root")];
    };
    let entries = read_entries(home);
    let (files, folders): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| entry.data.is_file());
    let secrets: Vec<&Entry> = files.iter().copied().filter(|entry| is_secret(&entry.path)).collect();
    let closed = folders_of_secrets(root, &secrets);
    let modes = |entries: &[&Entry], is_meant: &dyn Fn(&Path) -> bool| -> Vec<(PathBuf, u32)> {
        let meant = entries.iter().filter(|entry| is_meant(&entry.path));
        meant.map(|entry| (entry.path.clone(), mode(&entry.data))).collect()
    };
    let mut plain = modes(&files, &|path| !is_secret(path));
    plain.extend(modes(&folders, &|_| true));
    let (secret_modes, folder_modes) = (modes(&secrets, &|_| true), modes(&folders, &|path| closed.contains(path)));
    let mut findings = mode_findings(home, &SECRET, ("secrets", 0o600), &secret_modes, 0o077);
    findings.extend(mode_findings(home, &FOLDER, ("folders", 0o700), &folder_modes, 0o077));
    findings.extend(owner_findings(home, owner, &secrets));
    findings.extend(writable_findings(home, &plain));
    findings.push(database_finding(&database_folder(root)));
    findings
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use time::OffsetDateTime;

    use super::super::finding::Level;
    use super::*;
    use crate::files::{write_public, write_secret};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// What is broken, as `look subject`.
    fn broken(home: &Home) -> Vec<String> {
        let findings = look(home).into_iter().filter(|finding| finding.level > Level::Skip);
        findings.map(|finding| format!("{} {}", finding.look.name, finding.subject)).collect()
    }

    #[test]
    fn each_mode_that_is_too_open_is_named_with_the_command_that_closes_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        let secret = folder.path().join("secrets/postgres-core.url");
        let public = folder.path().join("hub/hub.conf");
        write_secret(&secret, b"postgres://x").unwrap();
        write_public(&public, b"listen").unwrap();
        assert!(broken(&home).is_empty(), "{:?}", broken(&home));

        set_mode(&secret, 0o644);
        assert_eq!(broken(&home), ["secret-mode secrets/postgres-core.url"]);
        let advice = look(&home).into_iter().find(|finding| finding.level == Level::Fail).unwrap().advice;
        assert_eq!(advice, format!("chmod 600 {}", secret.display()));
        set_mode(&secret, 0o600);
        set_mode(secret.parent().unwrap(), 0o755);
        assert_eq!(broken(&home), ["secret-folder secrets"]);
        set_mode(secret.parent().unwrap(), 0o700);
        set_mode(&public, 0o666);
        assert_eq!(broken(&home), ["writable-by-others hub/hub.conf"]);
        set_mode(&public, 0o644);
        let logs = folder.path().join("logs");
        fs::create_dir(&logs).unwrap();
        set_mode(&logs, 0o777);
        assert_eq!(broken(&home), ["writable-by-others logs"]);
    }

    #[test]
    fn an_open_folder_of_the_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(database_finding(&folder.path().join("gone")).level, Level::Skip);
        set_mode(folder.path(), 0o755);
        assert_eq!(database_finding(folder.path()).level, Level::Fail);
        set_mode(folder.path(), 0o700);
        assert_eq!(database_finding(folder.path()).level, Level::Ok);
    }

    #[test]
    fn a_secret_of_somebody_else_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        write_secret(&folder.path().join("secrets/a.key"), b"x").unwrap();
        let entries = read_entries(&home);
        let secrets: Vec<&Entry> = entries.iter().filter(|entry| is_secret(&entry.path)).collect();
        let own = secrets[0].data.uid();
        assert_eq!(owner_findings(&home, own, &secrets)[0].level, Level::Ok);
        let finding = &owner_findings(&home, own + 1, &secrets)[0];
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.advice.starts_with("chown"), "{}", finding.advice);
    }
}
