//! Database addresses come from files, because they hold passwords.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Why an address cannot be read. Never shows what is in the file.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("read database address {path}")]
    Read { path: String, source: std::io::Error },
    #[error("database address {path} has mode {mode:03o}: it holds a password; run chmod 600 {path}")]
    Mode { path: String, mode: u32 },
    #[error("database address {path} does not begin with postgres://")]
    Form { path: String },
}

/// # Errors
/// When the file is missing, readable by others, or holds no address.
pub fn read_database_url(path: &Path) -> Result<String, UrlError> {
    let shown = path.display().to_string();
    let failed = |source| UrlError::Read { path: shown.clone(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(UrlError::Mode { path: shown, mode });
    }
    let url = text.trim();
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        Ok(url.to_owned())
    } else {
        Err(UrlError::Form { path: shown })
    }
}
