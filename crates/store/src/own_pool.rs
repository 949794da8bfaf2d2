//! Connections for schemas of single tenants. A backend keeps about 95 kB of every schema that it has visited and gives
//! nothing back (facts: postgres section 3), so one that has seen many is closed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::pooler::Pooler;

/// Schemas that one connection visits: about 20 MB of a backend's memory.
pub(crate) const SCHEMAS_A_CONNECTION: usize = 200;

/// Which schemas each backend has visited, by its process id.
type Visited = Arc<Mutex<HashMap<i32, HashSet<String>>>>;

#[derive(Debug, Clone)]
pub(crate) struct OwnPool {
    pool: PgPool,
    visited: Visited,
}

impl OwnPool {
    /// Connects when it is first needed. What a pooler lends is the pooler's to close.
    pub(crate) fn new(options: PgPoolOptions, to: PgConnectOptions, pooler: Pooler) -> Self {
        let visited = Visited::default();
        let known = Arc::clone(&visited);
        let options = options.after_release(move |connection, _| {
            let known = Arc::clone(&known);
            Box::pin(async move {
                sqlx::raw_sql("begin; rollback; reset role; reset all").execute(&mut *connection).await?;
                if pooler == Pooler::Transaction {
                    return Ok(true);
                }
                let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await?;
                let mut known = known.lock().expect("no holder panics");
                let is_full = known.get(&pid).is_some_and(|seen| seen.len() >= SCHEMAS_A_CONNECTION);
                if is_full {
                    known.remove(&pid);
                }
                Ok(!is_full)
            })
        });
        Self { pool: options.connect_lazy_with(to), visited }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn note_visit(&self, pid: i32, schema: &str) {
        let mut visited = self.visited.lock().expect("no holder panics");
        // Of connections that ended otherwise nobody says so.
        if visited.len() > 10 * usize::try_from(self.pool.options().get_max_connections()).unwrap_or(1) {
            visited.clear();
        }
        visited.entry(pid).or_default().insert(schema.to_owned());
    }
}
