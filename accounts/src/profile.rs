//! A profile: how a person reaches the hub. A TOML file that names certificate files.

use std::path::{Path, PathBuf};

use bulkhead_bus::UserName;
use bulkhead_runtime::{BusSettings, TlsFiles};
use serde::{Deserialize, Serialize};

use crate::files::{FileError, read_text, write_secret};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("{hint}")]
    File { hint: String, source: FileError },
    #[error("profile {path} is not valid")]
    Parse { path: String, source: toml::de::Error },
    #[error("write profile")]
    Write(#[source] FileError),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub user: UserName,
    pub urls: Vec<String>,
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// In profiles of an earlier release: nobody is asked for credentials any more, and whoever shows any is refused.
const FORMER: &str = "creds_file";

impl Profile {
    /// # Errors
    /// When the file is missing or not a profile.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let way_out = "start a platform with `bulkhead up`, or name one of `operator user add` by --profile";
        let hint = format!("no profile at {}: {way_out}", path.display());
        let text = read_text(path).map_err(|source| ProfileError::File { hint, source })?;
        let failed = |source| ProfileError::Parse { path: path.display().to_string(), source };
        let mut table: toml::Table = toml::from_str(&text).map_err(failed)?;
        table.remove(FORMER);
        table.try_into().map_err(failed)
    }

    /// # Errors
    /// When the file cannot be written.
    ///
    /// # Panics
    /// Never: a profile is made of text.
    pub fn write(&self, path: &Path) -> Result<(), ProfileError> {
        let text = toml::to_string(self).expect("a profile serializes");
        write_secret(path, text.as_bytes()).map_err(ProfileError::Write)
    }

    #[must_use]
    pub fn bus_settings(&self) -> BusSettings {
        BusSettings {
            urls: self.urls.clone(),
            tls: TlsFiles {
                ca_file: self.ca_file.clone(),
                cert_file: self.cert_file.clone(),
                key_file: self.key_file.clone(),
            },
            creds_file: None,
            inbox_prefix: format!("_INBOX_{}", self.user),
        }
    }
}
