//! Checking what was answered and putting it in place, the manifest last: it is what says that the folder is whole.

use std::path::{Component, Path};

use bulkhead_identity::{DeviceEnd, Enrolee, EnrolmentAnswer, EnrolmentFile};
use x509_parser::pem::parse_x509_pem;

use super::folder::{FolderError, MANIFEST, PUBLIC, SiteFolder};
use super::keys::DeviceKeys;

#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("it is for {found}, and {wanted} was asked for")]
    Other { found: String, wanted: String },
    #[error("file {0:?} has no place in a site's folder")]
    Path(String),
    #[error("{0} is missing in it")]
    Missing(String),
    #[error("the certificate {path} is not for the key that was made here: {problem}")]
    Certificate { path: String, problem: String },
    #[error("write it")]
    Folder(#[source] FolderError),
}

/// What this machine has made and what its programs write is nobody else's.
fn is_own(path: &str) -> bool {
    let is_secret = [".key", ".nk", ".xk", ".new"].iter().any(|end| path.ends_with(end));
    is_secret || path == "tls/listener.crt" || path == "state" || path.starts_with("state/")
}

fn check_path(file: &EnrolmentFile) -> Result<(), PlaceError> {
    let path = Path::new(&file.path);
    let is_name = |part: Component<'_>| match part {
        Component::Normal(name) => name.to_str().is_some_and(|name| !name.starts_with('.')),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => false,
    };
    let is_below = path.components().count() > 0 && path.components().all(is_name);
    if is_below && !is_own(&file.path) { Ok(()) } else { Err(PlaceError::Path(file.path.chars().take(100).collect())) }
}

/// Whether the first certificate of a PEM text is for a public key.
pub(crate) fn check_certificate(text: &str, key: &[u8]) -> Result<(), String> {
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    if certificate.public_key().raw == key { Ok(()) } else { Err("it holds another key".to_owned()) }
}

fn check(answer: &EnrolmentAnswer, enrolee: &Enrolee, keys: &DeviceKeys) -> Result<(), PlaceError> {
    if answer.poller != enrolee.to_string() {
        return Err(PlaceError::Other { found: answer.poller.clone(), wanted: enrolee.to_string() });
    }
    answer.files.iter().try_for_each(check_path)?;
    let find = |path: &str| {
        let found = answer.files.iter().find(|file| file.path == path);
        found.ok_or_else(|| PlaceError::Missing(path.to_owned()))
    };
    for path in ["leaf.conf", MANIFEST, &format!("pollers/{}/poller.toml", enrolee.poller)] {
        find(path)?;
    }
    for end in DeviceEnd::ALL {
        let path = format!("{}.crt", end.path(&enrolee.poller));
        let checked = check_certificate(&find(&path)?.text, &keys.public_key(end));
        checked.map_err(|problem| PlaceError::Certificate { path, problem })?;
    }
    Ok(())
}

/// # Errors
/// When it is not what was asked for; then nothing is written. When something cannot be written, the same command goes on.
pub(super) fn place(
    folder: &SiteFolder,
    answer: &EnrolmentAnswer,
    enrolee: &Enrolee,
    keys: &DeviceKeys,
) -> Result<(), PlaceError> {
    check(answer, enrolee, keys)?;
    keys.take_over(folder).map_err(PlaceError::Folder)?;
    let (last, first): (Vec<_>, Vec<_>) = answer.files.iter().partition(|file| file.path == MANIFEST);
    for file in first.into_iter().chain(last) {
        let parent = Path::new(&file.path).parent().and_then(Path::to_str).unwrap_or_default();
        folder.make(parent).map_err(PlaceError::Folder)?;
        folder.put(&file.path, file.text.as_bytes(), PUBLIC).map_err(PlaceError::Folder)?;
    }
    keys.finish(folder).and_then(|()| folder.finish()).map_err(PlaceError::Folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_outside_nor_over_keys_or_state() {
        let check = |path: &str| check_path(&EnrolmentFile { path: path.to_owned(), text: String::new() });
        for good in
            ["leaf.conf", "tls/leaf.crt", "pollers/p1/poller.toml", "systemd/bulkhead-leaf.acme-corp.oslo.service"]
        {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "./x",
            ".bashrc",
            "tls/.x",
            "tls/leaf.key",
            "pollers/p1/batch.nk",
            "pollers/p1/sealing.xk",
            "tls/listener.crt",
            "state",
            "state/js",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
