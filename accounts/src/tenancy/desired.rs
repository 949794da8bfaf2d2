//! Every account that there should be, beside what lies in the store. One that is damaged, or that another tool changed, is
//! told with its trouble and does not hide the others.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::AccountKey;
use bulkhead_claims::AccountBody;

use super::intake::{Shard, intake_name, intake_number};
use super::{Act, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::gate::{AUTH, SENT};
use crate::operator::{AccountRecord, OperatorError, SYSTEM};
use crate::plan::{Plan, PlanRef};
use crate::up::{CORE, OPS, Source};

/// One account.
#[derive(Debug)]
pub struct Desired {
    pub name: String,
    /// As it lies in the store; `None` where it is not there or not to be believed.
    pub stored: Option<AccountRecord>,
    /// What it is rendered to; `None` where another tool made it, or where that is not known.
    pub body: Option<AccountBody>,
    /// Why the store's is not what we wrote.
    pub trouble: Option<OperatorError>,
}

/// Accounts that were rendered, and those that cannot be.
#[derive(Debug, Default)]
pub struct Rendered {
    pub accounts: Vec<AccountRecord>,
    /// By name.
    pub failed: BTreeMap<String, TenancyError>,
}

/// What all accounts are rendered from, read once.
struct Ground {
    records: BTreeMap<String, TenantRecord>,
    plans: BTreeMap<PlanRef, Plan>,
    shards: BTreeMap<u32, Shard>,
    /// Tenants whose onboarding is being taken back: their accounts are on their way out.
    undone: BTreeSet<String>,
    /// CORE's key, which every tenant's imports name.
    core: Option<AccountKey>,
}

impl Ground {
    fn read(tenancy: &Tenancy) -> Result<Self, TenancyError> {
        let records = tenancy.records.all().map_err(TenancyError::Record)?;
        let mut plans = BTreeMap::new();
        for record in records.iter().filter(|record| record.stage != TenantStage::Offboarded) {
            if let Entry::Vacant(place) = plans.entry(record.plan) {
                place.insert(tenancy.plan_of(record)?);
            }
        }
        let core = tenancy.platform.operator.account(CORE).ok().flatten().map(|core| core.key);
        let open = tenancy.journal.under_way().map_err(TenancyError::Journal)?;
        let undone = open.iter().filter_map(|lines| lines.first()).filter(|first| first.act == Act::UndoTenant);
        Ok(Self {
            undone: undone.map(|first| first.about.clone()).collect(),
            records: records.into_iter().map(|record| (record.slug.to_string(), record)).collect(),
            plans,
            shards: tenancy.intake.shards().map_err(TenancyError::Intake)?,
            core,
        })
    }

    /// The names of accounts that should be there: those of the store, and those that the store lacks.
    fn names(&self, store: Vec<String>) -> BTreeSet<String> {
        let is_there = |record: &&TenantRecord| record.account.is_some() || record.stage != TenantStage::Adding;
        let tenants = self.records.values().filter(is_there).map(|record| record.slug.to_string());
        let shards = self.shards.keys().map(|&number| intake_name(number));
        let own = [SYSTEM, CORE, AUTH, SENT, OPS].map(str::to_owned);
        let all = store.into_iter().chain(tenants).chain(shards).chain(own);
        let is_offboarded =
            |name: &String| self.records.get(name).is_some_and(|record| record.stage == TenantStage::Offboarded);
        all.filter(|name| !is_offboarded(name) && !self.undone.contains(name)).collect()
    }

    fn source(&self, name: &str, tenancy: &Tenancy) -> Option<Source<'_>> {
        match name {
            SYSTEM => Some(Source::System),
            CORE => Some(Source::Core(tenancy.settings.hub_servers)),
            AUTH => Some(Source::Auth(tenancy.settings.hub_servers)),
            SENT => Some(Source::Sentinel),
            OPS => Some(Source::Ops),
            _ => match intake_number(name) {
                Some(number) => self.shards.get(&number).map(|shard| Source::Intake(number, shard)),
                None => {
                    let record = self.records.get(name)?;
                    Some(Source::Tenant(record, self.plans.get(&record.plan)?))
                }
            },
        }
    }

    fn look(&self, tenancy: &Tenancy, name: String) -> Desired {
        let operator = &tenancy.platform.operator;
        let previewed = match self.source(&name, tenancy).zip(self.core.as_ref()) {
            Some((source, core)) => tenancy.platform.preview(source, core).map(|(stored, body)| (stored, Some(body))),
            None => {
                let stored = operator.account(&name);
                stored
                    .and_then(|stored| stored.ok_or_else(|| OperatorError::NoAccount(name.clone())))
                    .map(|it| (it, None))
            }
        };
        match previewed {
            Ok((stored, body)) => Desired { name, stored: Some(stored), body, trouble: None },
            Err(trouble) => {
                let stored = operator.account(&name).ok().flatten();
                Desired { name, stored, body: None, trouble: Some(trouble) }
            }
        }
    }
}

impl Tenancy {
    /// Every account that there should be and that `is_asked` is true of. Writes nothing.
    ///
    /// # Errors
    /// When records, plans or shards are damaged.
    pub fn desired(&self, is_asked: &dyn Fn(&str) -> bool) -> Result<Vec<Desired>, TenancyError> {
        let ground = Ground::read(self)?;
        let names = ground.names(self.platform.operator.account_names());
        Ok(names.into_iter().filter(|name| is_asked(name)).map(|name| ground.look(self, name)).collect())
    }

    /// Renders every account that should be in force and that `is_asked` is true of; what has not changed keeps its token.
    ///
    /// # Errors
    /// When records, plans or shards are damaged, or CORE is, which every other account names.
    pub fn render_asked(&self, is_asked: &dyn Fn(&str) -> bool) -> Result<Rendered, TenancyError> {
        let platform = &self.platform;
        let ground = Ground::read(self)?;
        let hub = self.settings.hub_servers;
        let core = platform.render_core(hub).map_err(TenancyError::Platform)?;
        let (auth, sent) = platform.render_callout(hub).map_err(TenancyError::Platform)?;
        let mut rendered = Rendered::default();
        for name in ground.names(platform.operator.account_names()).into_iter().filter(|name| is_asked(name)) {
            let account = match ground.source(&name, self) {
                None => match platform.operator.account(&name) {
                    Ok(Some(account)) => Ok(account),
                    Ok(None) => Err(TenancyError::Operator(OperatorError::NoAccount(name.clone()))),
                    Err(error) => Err(TenancyError::Operator(error)),
                },
                Some(Source::System) => platform.operator.ensure_system(self.now_s()).map_err(TenancyError::Operator),
                Some(Source::Core(_)) => Ok(core.clone()),
                Some(Source::Auth(_)) => Ok(auth.clone()),
                Some(Source::Sentinel) => Ok(sent.clone()),
                Some(Source::Ops) => platform.render_ops().map_err(TenancyError::Platform),
                Some(Source::Intake(number, shard)) => {
                    platform.render_intake(number, shard).map_err(TenancyError::Platform)
                }
                Some(Source::Tenant(record, plan)) => {
                    platform.render_tenant(record, plan).map_err(TenancyError::Platform)
                }
            };
            match account {
                Ok(account) => rendered.accounts.push(account),
                Err(error) => drop(rendered.failed.insert(name, error)),
            }
        }
        Ok(rendered)
    }
}
