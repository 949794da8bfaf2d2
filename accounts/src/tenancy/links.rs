//! What provisioning talks to: the hub's servers over SYS, and the database.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_runtime::Bus;
use bulkhead_store::Provisioning;
use tokio::sync::OnceCell;

use super::pushed::{Begun, PushedTokens};
use super::waves::waves;
use super::{Tenancy, TenancyError};
use crate::files::read_secret;
use crate::operator::AccountRecord;
use crate::resolver::{
    Base, ConnectionFacts, KnownServers, Order, Patience, PushError, connections, push_many, push_order,
};
use crate::up::Platform;

/// For each account that is pushed together with others.
const EACH_LIMIT: Duration = Duration::from_secs(15);

/// Connections of one command.
pub struct Links {
    pub system: Bus,
    /// `None` where the platform's settings name no database.
    pub database: Option<Provisioning>,
    /// The servers that have to show a change.
    pub known: KnownServers,
    pushed: PushedTokens,
    /// To AUTH; made when something is told there, because AUTH is not there before the first push.
    gate: OnceCell<Bus>,
}

/// Whether servers may be overwritten that somebody else has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    Refuse,
    Force,
}

/// What became of pushing many accounts.
#[derive(Debug)]
pub struct Pushed {
    pub in_force: usize,
    /// How many of those were in force before, and were not sent.
    pub unchanged: usize,
    /// The others by name, and why.
    pub failed: BTreeMap<String, PushError>,
    pub took: Duration,
}

impl Tenancy {
    /// Connects to SYS and to the database.
    ///
    /// # Errors
    /// When one of them cannot be reached.
    pub async fn connect(&self) -> Result<Links, TenancyError> {
        let system = async { self.platform.connect_system().await.map_err(TenancyError::Platform) };
        let (system, database) = tokio::try_join!(system, self.connect_database())?;
        Ok(self.link(system, database))
    }

    /// Over connections that are there already.
    #[must_use]
    pub fn link(&self, system: Bus, database: Option<Provisioning>) -> Links {
        let known = KnownServers::of(self.settings.hub_servers);
        Links { system, database, known, pushed: PushedTokens::new(&self.platform.layout), gate: OnceCell::new() }
    }

    /// Remembers what was put in force by other means, over whatever the servers held.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn remember_pushed<'a>(&self, accounts: impl Iterator<Item = &'a AccountRecord>) -> Result<(), TenancyError> {
        let pushed = PushedTokens::new(&self.platform.layout);
        for account in accounts {
            pushed.finish(&account.name, &account.token).map_err(TenancyError::File)?;
        }
        Ok(())
    }

    /// Connects to the database, if there is one.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect_database(&self) -> Result<Option<Provisioning>, TenancyError> {
        let Some(path) = &self.settings.database_url_file else { return Ok(None) };
        let url = read_secret(path).map_err(TenancyError::DatabaseUrl)?;
        Provisioning::connect(url.trim()).await.map(Some).map_err(TenancyError::Rows)
    }
}

fn failed(account: &str) -> impl Fn(PushError) -> TenancyError {
    let account = account.to_owned();
    move |source| TenancyError::Push { account: account.clone(), source }
}

impl Links {
    /// The connection over which gatekeepers are told something.
    ///
    /// # Errors
    /// When the hub does not admit us to AUTH.
    pub async fn gate(&self, platform: &Platform) -> Result<&Bus, TenancyError> {
        let connect = || async { platform.connect_gate().await.map_err(TenancyError::Platform) };
        self.gate.get_or_try_init(connect).await
    }

    /// Pushes an account until every known server shows it. What somebody else has put there is not overwritten.
    ///
    /// # Errors
    /// When a server refuses it, does not show it in time, or holds somebody else's change.
    pub async fn push(&self, account: &AccountRecord) -> Result<(), TenancyError> {
        let begun = self.pushed.begin(&account.name, &account.token).map_err(TenancyError::File)?;
        let mut bases = begun.bases().into_iter();
        let mut outcome = self.push_from(account, bases.next().unwrap_or(Base::Absent)).await;
        for base in bases {
            if !matches!(outcome, Err(PushError::Changed { .. })) {
                break;
            }
            outcome = self.push_from(account, base).await;
        }
        self.settle(account, &begun, outcome.as_ref().err())?;
        outcome.map_err(failed(&account.name))
    }

    /// Remembers what servers may hold from now on.
    fn settle(&self, account: &AccountRecord, begun: &Begun, error: Option<&PushError>) -> Result<(), TenancyError> {
        let settled = match error {
            None => self.pushed.finish(&account.name, &account.token),
            Some(PushError::Changed { .. } | PushError::NotNewer { .. }) => self.pushed.take_back(&account.name, begun),
            // Some servers may have it.
            Some(_) => Ok(()),
        };
        settled.map_err(TenancyError::File)
    }

    async fn push_from(&self, account: &AccountRecord, base: Base) -> Result<(), PushError> {
        let order = Order { name: &account.name, account: &account.key, token: &account.token, base };
        push_order(&self.system, &order, &self.known, Patience::default()).await.map(drop)
    }

    /// Pushes many accounts, some at a time and each after those that it imports from; `progress` hears how many are done.
    /// What is in force everywhere is not sent again.
    ///
    /// # Errors
    /// When the servers cannot be asked at all. What is not in force is in the answer.
    pub async fn push_all(
        &self,
        accounts: &[&AccountRecord],
        overwrite: Overwrite,
        progress: &dyn Fn(usize),
    ) -> Result<Pushed, TenancyError> {
        let mut all = Pushed { in_force: 0, unchanged: 0, failed: BTreeMap::new(), took: Duration::ZERO };
        for wave in waves(accounts) {
            let before = all.in_force + all.failed.len();
            let pushed = self.push_wave(&wave, overwrite, &|done| progress(before + done)).await?;
            all.in_force += pushed.in_force;
            all.unchanged += pushed.unchanged;
            all.failed.extend(pushed.failed);
            all.took += pushed.took;
        }
        Ok(all)
    }

    async fn push_wave(
        &self,
        accounts: &[&AccountRecord],
        overwrite: Overwrite,
        progress: &dyn Fn(usize),
    ) -> Result<Pushed, TenancyError> {
        let begin = |account: &&AccountRecord| self.pushed.begin(&account.name, &account.token);
        let begun = accounts.iter().map(begin).collect::<Result<Vec<_>, _>>().map_err(TenancyError::File)?;
        let base_of = |begun: &Begun| match overwrite {
            Overwrite::Force => Base::Anything,
            Overwrite::Refuse => begun.bases().into_iter().next().unwrap_or(Base::Absent),
        };
        let mut orders = Vec::new();
        for (account, begun) in accounts.iter().copied().zip(&begun) {
            let base = base_of(begun);
            orders.push(Order { name: &account.name, account: &account.key, token: &account.token, base });
        }
        let done = push_many(&self.system, &orders, &self.known, EACH_LIMIT, progress).await;
        let mut done = done.map_err(TenancyError::NotAsked)?;
        for (account, begun) in accounts.iter().zip(&begun) {
            // One whose push was cut short before has two bases.
            for base in begun.bases().into_iter().skip(1) {
                if overwrite == Overwrite::Force
                    || !matches!(done.failed.get(&account.name), Some(PushError::Changed { .. }))
                {
                    break;
                }
                if self.push_from(account, base).await.is_ok() {
                    done.failed.remove(&account.name);
                    done.in_force += 1;
                }
            }
            self.settle(account, begun, done.failed.get(&account.name))?;
        }
        Ok(Pushed { in_force: done.in_force, unchanged: done.unchanged, failed: done.failed, took: done.took })
    }

    /// The connections that an account has now.
    ///
    /// # Errors
    /// When the servers cannot be asked.
    pub async fn connections(&self, account: &str) -> Result<Vec<ConnectionFacts>, TenancyError> {
        let all = connections(&self.system, Some(account), self.known.count()).await;
        all.map_err(TenancyError::NotAsked)
    }

    /// The account is gone from every server: the next push of its name begins anew.
    pub(super) fn forget(&self, account: &str) {
        self.pushed.forget(account);
    }
}
