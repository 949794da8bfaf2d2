//! What tenants there should be, and how that comes about: records, onboarding, suspension, offboarding, people, sites.
//!
//! Everything is rendered whole from the records. An act that was begun is finished or undone, never left half done.

mod adopt;
mod barred;
mod complete;
mod desired;
mod enrol;
mod error;
mod first_people;
mod found;
mod gate;
mod intake;
mod journal;
mod links;
mod live;
mod offboard;
mod onboard;
mod operator_keys;
mod paths;
mod people;
mod preview;
pub(crate) mod purges;
mod pushed;
mod record;
mod removal;
mod renew;
mod rotate;
mod rows;
mod settings;
mod sites;
mod sparing;
mod stage;
mod wanted;
mod waves;

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_runtime::Chain;
use time::OffsetDateTime;

use crate::certificates::{Authority, TrustDomain};
use crate::operator::{AccountRecord, OperatorStore};
use crate::plan::{Plan, Plans};
use crate::provisioning_lock::ProvisioningLock;
use crate::up::{Accounts, Layout, Platform};

pub use barred::RevokedBarred;
pub use desired::{Desired, Rendered};
pub use enrol::{GivenToken, GrantedEnrolment, NotEnrolled};
pub use error::TenancyError;
pub use first_people::{LetIn, remember_people};
pub use gate::ensure_gate;
pub use intake::{Intake, IntakeError, Shard, intake_name, intake_number, is_intake, place};
pub use journal::{Act, Journal, JournalError, Line, OpenAct};
pub use links::{Links, Overwrite, Pushed};
pub use offboard::{Ended, Evidence, ExportFile};
pub use onboard::{IfThere, NewTenant, Onboarded};
pub use paths::{PathError, PollerPath, SitePath};
pub use people::{NewPerson, PlatformPeople, PlatformPerson};
pub use preview::{Closing, Preview};
pub use purges::{Purge, purges};
pub use record::{
    FileState, Issued, PersonRecord, PersonRole, PollerRecord, RecordError, SiteRecord, SiteSettings, Standing,
    TenantRecord, TenantRecords, TenantStage,
};
pub use renew::GrantedRenewal;
pub use rotate::{RoleState, WhenUsed};
pub use rows::VerifiedRows;
pub use settings::{PlatformSettings, SettingsError, enrolment_address, host_and_port};
pub use sites::{BundleOrder, SiteOrder, WrittenBundle};
pub use wanted::{Prune, Step, WantedError, WantedTenant, WantedTenants, steps};
pub(crate) use waves::waves;

/// How long a command waits for another one to end.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// The platform of a home, with everything that tenants are made from.
pub struct Tenancy {
    pub platform: Platform,
    pub settings: PlatformSettings,
    pub records: TenantRecords,
    pub plans: Plans,
    pub journal: Journal,
    pub intake: Intake,
}

impl Tenancy {
    /// Opens the platform of a home.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn open(home: PathBuf) -> Result<Self, TenancyError> {
        let layout = Layout::new(home);
        let settings = PlatformSettings::read(&layout).map_err(TenancyError::Settings)?;
        let operator = OperatorStore::read(layout.operator()).map_err(TenancyError::Operator)?;
        let operator = operator.ok_or_else(|| {
            TenancyError::Settings(SettingsError::NoPlatform { home: layout.home().display().to_string() })
        })?;
        let domain: TrustDomain =
            settings.trust_domain.parse().map_err(|error| TenancyError::Invalid(format!("platform.toml: {error}")))?;
        let authority = Authority::new(layout.authority(), domain);
        let hub_urls = settings.hub_urls.clone();
        let platform = Platform { layout, operator, authority, hub_urls, now: OffsetDateTime::now_utc() };
        Ok(Self::of(platform, settings))
    }

    /// Of a platform that was made or opened already.
    #[must_use]
    pub fn of(platform: Platform, settings: PlatformSettings) -> Self {
        let layout = &platform.layout;
        Self {
            records: TenantRecords::new(layout),
            plans: Plans::new(layout.plans()),
            journal: Journal::new(layout),
            intake: Intake::new(layout),
            settings,
            platform,
        }
    }

    /// The right to change this platform.
    ///
    /// # Errors
    /// When somebody else keeps it.
    pub fn lock(&self) -> Result<ProvisioningLock, TenancyError> {
        ProvisioningLock::take(self.platform.layout.home(), LOCK_LIMIT).map_err(TenancyError::Lock)
    }

    #[must_use]
    pub fn now_s(&self) -> i64 {
        self.platform.now.unix_timestamp()
    }

    /// The plan that a tenant is pinned to.
    ///
    /// # Errors
    /// When its file is gone or damaged.
    pub fn plan_of(&self, record: &TenantRecord) -> Result<Plan, TenancyError> {
        self.plans.get(record.plan).map_err(TenancyError::Plan)
    }

    /// A tenant's account, rendered whole.
    ///
    /// # Errors
    /// When the operator store is damaged or cannot be written.
    pub fn render(&self, record: &TenantRecord) -> Result<AccountRecord, TenancyError> {
        let plan = self.plan_of(record)?;
        self.platform.render_tenant(record, &plan).map_err(TenancyError::Platform)
    }

    /// Renders every account that should be in force; what has not changed keeps its token.
    ///
    /// # Errors
    /// When the operator store is damaged or cannot be written.
    pub fn render_all(&self) -> Result<Accounts, TenancyError> {
        let platform = &self.platform;
        let core = platform.render_core(self.settings.hub_servers).map_err(TenancyError::Platform)?;
        let (auth, sent) = platform.render_callout(self.settings.hub_servers).map_err(TenancyError::Platform)?;
        let ops = platform.render_ops().map_err(TenancyError::Platform)?;
        let (mut tenants, mut left) = (Vec::new(), Vec::new());
        for record in self.records.all().map_err(TenancyError::Record)? {
            if record.stage != TenantStage::Offboarded {
                match self.render(&record) {
                    Ok(account) => tenants.push((record, account)),
                    // Servers go on with what they have, and so do all other tenants.
                    Err(error) if error.is_foreign_edit() => left.push(Chain(&error).to_string()),
                    Err(error) => return Err(error),
                }
            }
        }
        let mut intake = std::collections::BTreeMap::new();
        for (number, shard) in self.intake.shards().map_err(TenancyError::Intake)? {
            intake.insert(number, platform.render_intake(number, &shard).map_err(TenancyError::Platform)?);
        }
        Ok(Accounts { core, auth, sent, intake, ops, tenants, left })
    }
}
