//! Which servers are ours: those that answer under their own key in SYS, where nobody else can.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use bulkhead_bus::question::server_identity;
use bulkhead_runtime::{Bus, eventually};
use serde_json::Value;

/// A server answers within a millisecond; one that has just come may not be reached at once, and is asked again. The
/// connection that asks waits meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_millis(100);
const ASK_LIMIT: Duration = Duration::from_millis(300);
/// Servers get a new key at each start; old ones are forgotten when there are too many.
const KNOWN_MOST: usize = 1_000;

/// Public keys of servers of which something is known.
#[derive(Debug, Default)]
pub struct ServerKeys(Mutex<HashSet<String>>);

impl ServerKeys {
    pub fn has(&self, id: &str) -> bool {
        self.0.lock().expect("no holder panics").contains(id)
    }

    pub fn add(&self, id: &str) {
        let mut known = self.0.lock().expect("no holder panics");
        if known.len() >= KNOWN_MOST {
            known.clear();
        }
        known.insert(id.to_owned());
    }
}

/// The servers that have answered.
#[derive(Debug)]
pub struct Servers {
    system: Bus,
    known: ServerKeys,
}

impl Servers {
    /// `system` is a connection in SYS.
    #[must_use]
    pub fn new(system: Bus) -> Self {
        Self { system, known: ServerKeys::default() }
    }

    /// Whether the server with this public key is one of ours. `id` is known to be a server's key.
    pub async fn has(&self, id: &str) -> bool {
        if self.known.has(id) {
            return true;
        }
        let asked = eventually("an answer", ASK_LIMIT, || {
            let subject = server_identity(id);
            async move { self.system.request(&subject, "{}".into(), ANSWER_LIMIT).await }
        });
        let said: Value = asked.await.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        let is_ours = said["server"]["id"] == id || said["id"] == id;
        if is_ours {
            self.known.add(id);
        }
        is_ours
    }
}
