//! Claims of no kind of their own, of which we use one: the request to delete accounts.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::body::{Body, ClaimKind};
use crate::token::VERSION;

const ACCOUNTS: &str = "accounts";

/// Whatever the issuer wants to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenericBody {
    pub data: Map<String, Value>,
}

impl GenericBody {
    /// Asks servers to delete accounts. Whoever has such a token can send it again and again: it belongs in no log.
    #[must_use]
    pub fn delete_request(accounts: Vec<String>) -> Self {
        Self { data: Map::from_iter([(ACCOUNTS.to_owned(), accounts.into())]) }
    }

    /// The accounts that a request to delete names.
    pub fn accounts(&self) -> impl Iterator<Item = &str> {
        self.data.get(ACCOUNTS).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }
}

impl Body for GenericBody {
    const KIND: ClaimKind = ClaimKind::Generic;

    fn prepare(&mut self) {
        self.data.insert("version".to_owned(), VERSION.into());
    }

    fn said(&self) -> (&str, u64) {
        let kind = self.data.get("type").and_then(Value::as_str).unwrap_or_default();
        // Servers read such requests without looking at the version, so a missing one is no reason to refuse.
        let version = self.data.get("version").map_or(Some(VERSION.into()), Value::as_u64);
        (kind, version.unwrap_or_default())
    }
}
