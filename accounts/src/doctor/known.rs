//! The operator store as it lies on disk: every account that can be read, and those that cannot.

use std::collections::HashMap;

use bulkhead_runtime::Chain;

use super::home::Home;
use crate::operator::{AccountRecord, OperatorStore};

/// What the operator store knows.
pub(super) struct Known {
    pub(super) operator: OperatorStore,
    pub(super) accounts: Vec<AccountRecord>,
    /// Accounts by name, with why their token cannot be read.
    pub(super) unreadable: Vec<(String, String)>,
    by_key: HashMap<String, usize>,
}

impl Known {
    /// # Errors
    /// Why the store cannot be read at all.
    pub(super) fn read(home: &Home) -> Result<Self, String> {
        let operator = OperatorStore::read(home.layout.operator()).map_err(|error| Chain(&error).to_string())?;
        let operator = operator.ok_or("there is no operator in nsc")?;
        let (mut accounts, mut unreadable) = (Vec::new(), Vec::new());
        for name in operator.account_names() {
            match operator.account(&name) {
                Ok(Some(record)) => accounts.push(record),
                Ok(None) => unreadable.push((name, "its token is gone".to_owned())),
                Err(error) => unreadable.push((name, Chain(&error).to_string())),
            }
        }
        let by_key = accounts.iter().enumerate().map(|(index, record)| (record.key.to_string(), index)).collect();
        Ok(Self { operator, accounts, unreadable, by_key })
    }

    pub(super) fn named(&self, name: &str) -> Option<&AccountRecord> {
        self.accounts.iter().find(|record| record.name == name)
    }

    pub(super) fn keyed(&self, key: &str) -> Option<&AccountRecord> {
        self.by_key.get(key).and_then(|&index| self.accounts.get(index))
    }
}
