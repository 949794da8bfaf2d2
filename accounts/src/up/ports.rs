//! Ports of one deployment, kept from start to start and changed only when somebody else has taken one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use crate::files::{FileError, read_text, write_public};

/// Why there is no port to use.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("ports of this deployment")]
    File(#[source] FileError),
    #[error("find a free port on 127.0.0.1")]
    NoneFree(#[source] std::io::Error),
}

/// Below those that systems give to outgoing connections: one of these would take a port between our choice and the start of
/// whoever is to listen there.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Ports by what listens there, such as `hub-client`.
#[derive(Debug, Default)]
pub(super) struct Ports {
    by_name: BTreeMap<String, u16>,
    /// Ports that had to change, for telling the user.
    pub moved: Vec<String>,
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A port of the loopback interface that nobody listens on. This process gives each to one asker only, and processes begin
/// at different ones.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16, PortError> {
    static BEGIN: OnceLock<usize> = OnceLock::new();
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    let begin = *BEGIN.get_or_init(|| usize::from(Uuid::new_v4().as_fields().1));
    for _ in 0..COUNT {
        let place = (begin + GIVEN.fetch_add(1, Ordering::Relaxed)) % usize::from(COUNT);
        let port = FIRST + u16::try_from(place).unwrap_or(0);
        if is_free(port) {
            return Ok(port);
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(PortError::NoneFree)?;
    Ok(listener.local_addr().map_err(PortError::NoneFree)?.port())
}

impl Ports {
    /// Reads the ports of the last start; a missing or damaged file means new ports.
    #[must_use]
    pub(super) fn read(file: &Path) -> Self {
        let by_name = read_text(file).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Self { by_name, moved: vec![] }
    }

    /// Ports for a copy of the deployment whose ports these are: free ones, and none of its own.
    #[must_use]
    pub(super) fn beside(file: &Path) -> Self {
        let others = Self::read(file).by_name.into_iter().map(|(name, port)| (format!("original-{name}"), port));
        Self { by_name: others.collect(), moved: vec![] }
    }

    /// The port that `name` had, or a free one.
    ///
    /// # Errors
    /// When no port is free.
    pub(super) fn choose(&mut self, name: &str) -> Result<u16, PortError> {
        let old = self.by_name.get(name).copied();
        if let Some(port) = old.filter(|&port| is_free(port)) {
            return Ok(port);
        }
        let port = loop {
            let port = free_port()?;
            if !self.by_name.values().any(|&taken| taken == port) {
                break port;
            }
        };
        if let Some(old) = old {
            self.moved.push(format!("port {old} of {name} is taken by another process: using {port}"));
        }
        self.by_name.insert(name.to_owned(), port);
        Ok(port)
    }

    /// The port that was chosen for `name`.
    #[must_use]
    pub(super) fn chosen(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    /// # Errors
    /// When the file cannot be written.
    ///
    /// # Panics
    /// Never: a map of numbers serializes.
    pub(super) fn write(&self, file: &Path) -> Result<(), PortError> {
        let text = serde_json::to_string_pretty(&self.by_name).expect("a map of numbers serializes");
        write_public(file, text.as_bytes()).map_err(PortError::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kept_until_somebody_else_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        let mut ports = Ports::read(&file);
        let first = ports.choose("hub-client").unwrap();
        assert_ne!(ports.choose("hub-leaf").unwrap(), first);
        ports.write(&file).unwrap();
        let mut again = Ports::read(&file);
        assert_eq!(again.choose("hub-client").unwrap(), first);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        assert_ne!(again.choose("hub-client").unwrap(), first);
        assert!(again.moved[0].contains(&first.to_string()));
    }

    #[test]
    fn a_copy_never_listens_where_the_original_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        let mut original = Ports::read(&file);
        let port = original.choose("hub-leaf").unwrap();
        original.write(&file).unwrap();
        let mut copy = Ports::beside(&file);
        assert_ne!(copy.choose("hub-leaf").unwrap(), port);
        assert!(copy.by_name.values().any(|&taken| taken == port), "it is free, and could be chosen all the same");
    }

    #[test]
    fn no_port_is_given_twice_and_none_is_one_of_outgoing_connections() {
        let ports: Vec<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        let different: std::collections::BTreeSet<&u16> = ports.iter().collect();
        assert_eq!(different.len(), ports.len());
        assert!(ports.iter().all(|&port| (FIRST..FIRST + COUNT).contains(&port)), "{ports:?}");
    }

    #[test]
    fn a_damaged_file_means_new_ports() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        std::fs::write(&file, "{\"hub-client\": \"ninety\"").unwrap();
        assert!(Ports::read(&file).choose("hub-client").is_ok());
    }
}
