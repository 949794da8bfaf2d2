//! What provisioning talks to: the hub's servers over SYS, and the database.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_bus::Role;
use bulkhead_runtime::Bus;
use bulkhead_store::Provisioning;
use tokio::sync::OnceCell;

use super::pushed::{Begun, PushedTokens};
use super::settings::acting;
use super::waves::waves;
use super::{Tenancy, TenancyError};
use crate::files::read_secret;
use crate::gate::AUTH;
use crate::operator::{AccountRecord, SYSTEM};
use crate::resolver::{
    Base, ConnectionFacts, KnownServers, Order, Patience, PushError, connections, push_many, push_order, servers,
};
use crate::up::Platform;

/// A hub that is just being started again is waited for; one that is away is not, because whoever asked waits as well.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);
/// For each account that is pushed together with others.
const EACH_LIMIT: Duration = Duration::from_secs(15);

/// Connections of one command, each made when it is needed first.
pub struct Links {
    /// The servers that have to show a change.
    pub known: KnownServers,
    pushed: PushedTokens,
    /// Boxed: it lives in many futures.
    platform: Box<Platform>,
    database_url_file: Option<PathBuf>,
    system: OnceCell<Bus>,
    database: OnceCell<Option<Provisioning>>,
    /// To AUTH, which is not there before the first push.
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
    /// Connects to SYS and to the database: for what is not to be begun while one of them is away.
    ///
    /// # Errors
    /// When one of them cannot be reached.
    pub async fn connect(&self) -> Result<Links, TenancyError> {
        let links = self.links()?;
        tokio::try_join!(links.system(), links.database())?;
        Ok(links)
    }

    /// Connections that are made once they are needed: for what takes something away, which is written down first, whoever
    /// is away.
    ///
    /// # Errors
    /// When the platform's files cannot be read.
    pub fn links(&self) -> Result<Links, TenancyError> {
        Ok(Links {
            known: KnownServers::of(self.settings.hub_servers),
            pushed: PushedTokens::new(&self.platform.layout),
            platform: Box::new(self.platform.reopen().map_err(TenancyError::Platform)?),
            database_url_file: self.settings.database_url_file.clone(),
            system: OnceCell::new(),
            database: OnceCell::new(),
            gate: OnceCell::new(),
        })
    }

    /// Over a connection to SYS that is there already, and without a database.
    ///
    /// # Errors
    /// When the platform's files cannot be read.
    pub fn link(&self, system: Bus) -> Result<Links, TenancyError> {
        let (system, database) = (OnceCell::from(system), OnceCell::from(None));
        Ok(Links { system, database, ..self.links()? })
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
}

fn failed(account: &str) -> impl Fn(PushError) -> TenancyError {
    let account = account.to_owned();
    move |source| TenancyError::Push { account: account.clone(), source }
}

impl Links {
    async fn connect(&self, account: &str, role: Role) -> Result<Bus, TenancyError> {
        self.platform.connect_direct(account, role, CONNECT_LIMIT).await.map_err(TenancyError::Platform)
    }

    /// The connection over which servers are asked and told.
    ///
    /// # Errors
    /// When the hub cannot be reached.
    pub async fn system(&self) -> Result<&Bus, TenancyError> {
        self.system.get_or_try_init(|| self.connect(SYSTEM, Role::SystemOperator)).await
    }

    /// The database; `None` where the platform's settings name none.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn database(&self) -> Result<Option<&Provisioning>, TenancyError> {
        let connect = || async {
            let Some(path) = &self.database_url_file else { return Ok(None) };
            let url = read_secret(path).map_err(TenancyError::DatabaseUrl)?;
            let database = Provisioning::connect(url.trim()).await.map_err(TenancyError::Rows)?;
            Ok(Some(match acting() {
                Some(name) => database.acting_as(name),
                None => database,
            }))
        };
        self.database.get_or_try_init(connect).await.map(Option::as_ref)
    }

    /// The connection over which gatekeepers are told something.
    ///
    /// # Errors
    /// When the hub does not admit us to AUTH.
    pub async fn gate(&self) -> Result<&Bus, TenancyError> {
        self.gate.get_or_try_init(|| self.connect(AUTH, Role::GateWriter)).await
    }

    /// Pushes an account until every known server shows it. What somebody else has put there is not overwritten.
    ///
    /// # Errors
    /// When a server refuses it, does not show it in time, or holds somebody else's change.
    pub async fn push(&self, account: &AccountRecord) -> Result<(), TenancyError> {
        let system = self.system().await?;
        let begun = self.pushed.begin(&account.name, &account.token).map_err(TenancyError::File)?;
        let mut bases = begun.bases().into_iter();
        let mut outcome = self.push_from(system, account, bases.next().unwrap_or(Base::Absent)).await;
        for base in bases {
            if !matches!(outcome, Err(PushError::Changed { .. })) {
                break;
            }
            outcome = self.push_from(system, account, base).await;
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

    async fn push_from(&self, system: &Bus, account: &AccountRecord, base: Base) -> Result<(), PushError> {
        let order = Order { name: &account.name, account: &account.key, token: &account.token, base };
        push_order(system, &order, &self.known, Patience::default()).await.map(drop)
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
        let system = self.system().await?;
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
        let done = push_many(system, &orders, &self.known, EACH_LIMIT, progress).await;
        let mut done = done.map_err(TenancyError::NotAsked)?;
        for (account, begun) in accounts.iter().zip(&begun) {
            // One whose push was cut short before has two bases.
            for base in begun.bases().into_iter().skip(1) {
                if overwrite == Overwrite::Force
                    || !matches!(done.failed.get(&account.name), Some(PushError::Changed { .. }))
                {
                    break;
                }
                if self.push_from(system, account, base).await.is_ok() {
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
        let all = connections(self.system().await?, Some(account), self.known.count()).await;
        all.map_err(TenancyError::NotAsked)
    }

    /// Servers that are known and do not answer.
    ///
    /// # Errors
    /// When the servers cannot be asked.
    pub async fn silent_servers(&self) -> Result<Vec<String>, TenancyError> {
        let there = servers(self.system().await?, self.known.count()).await.map_err(TenancyError::NotAsked)?;
        Ok(self.known.absent(&there))
    }

    /// The account is gone from every server: the next push of its name begins anew.
    pub(super) fn forget(&self, account: &str) {
        self.pushed.forget(account);
    }
}
