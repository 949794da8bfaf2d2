//! The only reader of the environment here.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The product's own setting: where fetched servers are kept.
pub(crate) const TOOLS_DIR: &str = "BULKHEAD_TOOLS_DIR";

/// The folder that everything started from here shares. It is absolute, because cargo runs tests in other folders.
pub(crate) fn tools_folder(root: &Path) -> PathBuf {
    chosen(env::var_os(TOOLS_DIR), root)
}

fn chosen(set: Option<OsString>, root: &Path) -> PathBuf {
    let set = set.filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set.unwrap_or_else(|| root.join(".bulkhead").join("tools"));
    std::path::absolute(&folder).unwrap_or(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetched_servers_are_kept_in_one_absolute_place() {
        let root = Path::new("/checkout");
        assert_eq!(chosen(None, root), Path::new("/checkout/.bulkhead/tools"));
        assert_eq!(chosen(Some(OsString::new()), root), Path::new("/checkout/.bulkhead/tools"));
        assert_eq!(chosen(Some("/kept".into()), root), Path::new("/kept"));
        assert!(chosen(Some("kept".into()), root).is_absolute());
    }
}
