//! In which order accounts are pushed: a server waits two seconds for each account that another one imports from and that
//! it does not know.

use std::collections::BTreeSet;

use crate::operator::{AccountRecord, SYSTEM};

/// Accounts that may be pushed at the same time, wave by wave: each after those of `accounts` that it imports from.
///
/// The system's account comes first and alone: a change of its roles closes our own connection.
pub(crate) fn waves<'a>(accounts: &[&'a AccountRecord]) -> Vec<Vec<&'a AccountRecord>> {
    let (system, mut rest): (Vec<_>, Vec<_>) = accounts.iter().copied().partition(|account| account.name == SYSTEM);
    let mut waves = vec![system];
    while !rest.is_empty() {
        let open: BTreeSet<&str> = rest.iter().map(|account| account.key.as_str()).collect();
        let waits = |account: &&AccountRecord| {
            let imports = &account.claims.nats.imports;
            imports
                .iter()
                .any(|import| import.account != account.key.as_str() && open.contains(import.account.as_str()))
        };
        let (later, now): (Vec<_>, Vec<_>) = rest.iter().copied().partition(waits);
        // Accounts that import from each other have no order.
        let is_circle = now.is_empty();
        waves.push(if is_circle { later.clone() } else { now });
        rest = if is_circle { vec![] } else { later };
    }
    waves.retain(|wave| !wave.is_empty());
    waves
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::{AccountBody, Claims, Import, KeyKind, SigningKey};

    fn account(name: &str, imports: &[&AccountRecord]) -> AccountRecord {
        let key = SigningKey::generate(KeyKind::Account).public().to_owned();
        let import = |from: &&AccountRecord| Import { account: from.key.to_string(), ..Import::default() };
        let body = AccountBody { imports: imports.iter().map(import).collect(), ..AccountBody::default() };
        AccountRecord {
            name: name.to_owned(),
            key: key.parse().unwrap(),
            token: String::new(),
            claims: Claims::new(key, name.to_owned(), 1, body),
        }
    }

    fn names(accounts: &[&AccountRecord]) -> Vec<Vec<String>> {
        let name = |account: &&AccountRecord| account.name.clone();
        waves(accounts).iter().map(|wave| wave.iter().map(name).collect()).collect()
    }

    #[test]
    fn each_comes_after_those_that_it_imports_from_and_the_system_first() {
        let (system, core) = (account(SYSTEM, &[]), account("core", &[]));
        let (acme, xyz) = (account("acme-corp", &[&core]), account("xyz-inc", &[&core]));
        let intake = account("intake-1", &[&acme, &xyz]);
        let all = [&acme, &intake, &core, &system, &xyz];
        assert_eq!(names(&all), [vec![SYSTEM], vec!["core"], vec!["acme-corp", "xyz-inc"], vec!["intake-1"]]);
        // Whoever is not pushed is not waited for.
        assert_eq!(names(&[&intake, &acme]), [["acme-corp"], ["intake-1"]]);
        assert_eq!(names(&[]), Vec::<Vec<String>>::new());
    }

    #[test]
    fn accounts_that_import_from_each_other_are_all_pushed() {
        let mut one = account("one", &[]);
        let two = account("two", &[&one]);
        one.claims.nats.imports = account("", &[&two, &one]).claims.nats.imports;
        let free = account("free", &[]);
        assert_eq!(names(&[&one, &two, &free]), [vec!["free"], vec!["one", "two"]]);
    }
}
