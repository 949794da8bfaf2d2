//! Provisions a platform: accounts, certificates and credentials on disk, claims on the hub, streams, database rows.
//!
//! Everything is rendered from what should be, so a second run changes nothing and finishes what a killed one left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::{AccountKey, Role, StreamName, Tenant, TenantSlug, TenantState, UserName};
use bulkhead_claims::AccountBody;
use bulkhead_runtime::{Bus, BusSettings, Chain, EnsureError, LimitReached, MEMBER_BUCKETS, TlsFiles, eventually};
use bulkhead_store::{Provisioning, ProvisioningError};
use time::OffsetDateTime;

use super::layout::Layout;
use super::poller_settings::write_settings;
use super::site::SiteError;
use super::start::bus_file;
use crate::certificates::{
    Authority, AuthorityName, CertificateError, CertificateFiles, ClientIdentity, Reason, Revocable, TrustDomain,
};
use crate::files::{FileError, remove_whole, write_secret};
use crate::gate::{AUTH, GateError, GateSecrets, SENT, render_auth, render_sentinel};
use crate::hub_size::HubSize;
use crate::nats_config::CalloutConfig;
use crate::operator::{AccountRecord, OperatorError, OperatorStore, SYSTEM, UserRequest};
use crate::plan::{Plan, PlanName};
use crate::profile::{Profile, ProfileError};
use crate::render::{RoleKey, closed, core_account, intake_account, tenant_account};
use crate::resolver::{PushError, push};
use crate::tenancy::{Issued, LetIn, Shard, TenantRecord, intake_name};

pub const CORE: &str = "core";
/// The first shard of live streams; there is always one.
pub const INTAKE: &str = "intake-1";
pub const OPS: &str = "ops";
/// A hub of three takes streams once its servers have chosen a leader, 4 to 9 seconds after their start.
const STREAMS_LIMIT: Duration = Duration::from_secs(30);
/// Credentials are issued anew at every start of `up`, so they need not live long.
const CREDENTIALS_DAYS: i64 = 30;
/// Of everybody whom `up` lets in; a start issues anew.
const CERTIFICATE_LIFE: time::Duration = time::Duration::days(90);
/// What provisioning is called as a service.
pub(super) const PROVISIONING: &str = "provisioning";
/// Who uses `bulkhead` on this machine, in OPS and in each tenant.
pub(super) const PERSON: &str = "admin";

/// What went wrong while provisioning.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("operator store")]
    Operator(#[source] OperatorError),
    #[error("certificates")]
    Certificate(#[source] CertificateError),
    #[error("credentials")]
    File(#[source] FileError),
    #[error("profile")]
    Profile(#[source] ProfileError),
    #[error("gatekeeper")]
    Gate(#[source] GateError),
    #[error("push claims")]
    Push(#[source] PushError),
    #[error("the hub cannot be reached, or does not admit {0}")]
    Admit(&'static str, #[source] LimitReached),
    #[error("the servers of the hub do not find each other")]
    Apart(#[source] LimitReached),
    #[error("make streams")]
    Streams(#[source] EnsureError),
    #[error("make stream {0}")]
    NoStreams(&'static str, #[source] LimitReached),
    #[error("database rows")]
    Rows(#[source] ProvisioningError),
    #[error("settings of a live bus")]
    LiveBus(#[source] SiteError),
    #[error("user name")]
    Name(#[source] bulkhead_bus::NameError),
}

/// The parts of a platform that provisioning works with.
pub struct Platform {
    pub layout: Layout,
    pub operator: OperatorStore,
    pub authority: Authority,
    /// Every server of the hub.
    pub hub_urls: Vec<String>,
    pub now: OffsetDateTime,
}

/// All accounts of a platform, in the order in which they are pushed.
pub struct Accounts {
    pub core: AccountRecord,
    pub auth: AccountRecord,
    pub sent: AccountRecord,
    /// By the number of the shard.
    pub intake: BTreeMap<u32, AccountRecord>,
    pub ops: AccountRecord,
    pub tenants: Vec<(TenantRecord, AccountRecord)>,
    /// Why a tenant is not among them: another tool changed its account, which is left as it is.
    pub left: Vec<String>,
}

impl Accounts {
    /// Every account but the system's, each after those that it imports from: a server that does not know one waits for
    /// it for two seconds.
    pub fn all(&self) -> impl Iterator<Item = &AccountRecord> {
        let tenants = self.tenants.iter().map(|(_, account)| account);
        [&self.core, &self.auth, &self.sent, &self.ops].into_iter().chain(tenants).chain(self.intake.values())
    }
}

impl Platform {
    pub(super) fn now_s(&self) -> i64 {
        self.now.unix_timestamp()
    }

    /// CORE, rendered for a hub of this size.
    ///
    /// # Errors
    /// When the operator store is damaged or cannot be written.
    pub fn render_core(&self, hub: HubSize) -> Result<AccountRecord, PlatformError> {
        let core = self.operator.ensure_account(CORE, &Role::CORE, self.now_s(), |_, keys| core_account(keys, hub));
        core.map_err(PlatformError::Operator)
    }

    /// AUTH for a hub of this size, and SENT.
    ///
    /// # Errors
    /// When the operator store or a key is damaged or cannot be written.
    pub fn render_callout(&self, hub: HubSize) -> Result<(AccountRecord, AccountRecord), PlatformError> {
        let auth = render_auth(&self.operator, hub, self.now_s()).map_err(PlatformError::Gate)?;
        let sent = self.operator.account(SENT).map_err(PlatformError::Operator)?;
        let xkey = GateSecrets::new(&self.layout).ensure_xkey(sent.as_ref()).map_err(PlatformError::Gate)?;
        let sent = render_sentinel(&self.operator, &auth, xkey.public(), self.now_s()).map_err(PlatformError::Gate)?;
        Ok((auth, sent))
    }

    /// What servers of the hub are told of the gatekeepers; AUTH and SENT have to be there.
    ///
    /// # Errors
    /// When one of them is not, or a key is damaged.
    pub fn callout(&self) -> Result<CalloutConfig, PlatformError> {
        let account = |name: &str| {
            let account = self.operator.account(name).map_err(PlatformError::Operator)?;
            account.ok_or_else(|| PlatformError::Operator(OperatorError::NoAccount(name.to_owned())))
        };
        let (auth, sent) = (account(AUTH)?, account(SENT)?);
        let callout = GateSecrets::new(&self.layout).callout(&self.operator, (&auth, &sent), self.now_s());
        callout.map_err(PlatformError::Gate)
    }

    pub(super) fn core_key(&self) -> Result<AccountKey, PlatformError> {
        let core = self.operator.account(CORE).map_err(PlatformError::Operator)?;
        let core = core.ok_or_else(|| PlatformError::Operator(OperatorError::NoAccount(CORE.to_owned())))?;
        Ok(core.key)
    }

    /// OPS; CORE has to be there.
    ///
    /// # Errors
    /// When the operator store is damaged or cannot be written.
    pub fn render_ops(&self) -> Result<AccountRecord, PlatformError> {
        let core = self.core_key()?;
        let render = |own: &str, keys: &[_]| tenant_account(&ops_plan(), own, core.as_str(), keys);
        let ops = self.operator.ensure_account(OPS, &[Role::PlatformAdmin], self.now_s(), render);
        ops.map_err(PlatformError::Operator)
    }

    /// A tenant's account, whole, from its record and its plan; its keys and its intermediate are made when they are missing.
    ///
    /// # Errors
    /// When the operator store is damaged or cannot be written.
    ///
    /// # Panics
    /// When making the intermediate does.
    pub fn render_tenant(&self, record: &TenantRecord, plan: &Plan) -> Result<AccountRecord, PlatformError> {
        let core = self.core_key()?;
        let render = |own: &str, keys: &[_]| tenant_body(record, plan, own, core.as_str(), keys);
        // Neither needs the other, and both wait for the disk: together they wait once.
        let (intermediate, account) = std::thread::scope(|scope| {
            let intermediate = scope.spawn(|| self.authority.ensure_tenant(&record.slug, self.now));
            let account = self.operator.ensure_account(record.slug.as_str(), &Role::TENANT, self.now_s(), render);
            (intermediate.join().expect("making an intermediate does not panic"), account)
        });
        intermediate.map_err(PlatformError::Certificate)?;
        account.map_err(PlatformError::Operator)
    }

    /// An INTAKE account.
    ///
    /// # Errors
    /// When the operator store is damaged or cannot be written.
    pub fn render_intake(&self, number: u32, shard: &Shard) -> Result<AccountRecord, PlatformError> {
        let imported = shard.imported();
        let render = |_: &str, keys: &[_]| intake_account(keys, &imported);
        let intake = self.operator.ensure_account(&intake_name(number), &[Role::CoreLive], self.now_s(), render);
        intake.map_err(PlatformError::Operator)
    }

    /// Issues the certificate of somebody whom the gatekeepers let in into `folder`, good for so long, and says how to
    /// connect by it, and what was issued, so that it can be taken back.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn let_in(
        &self,
        identity: &ClientIdentity,
        name: &str,
        folder: &Path,
        life: time::Duration,
    ) -> Result<(BusSettings, Issued), PlatformError> {
        let files = CertificateFiles::named(folder, name);
        let issued = self.authority.issue_client_for(identity, &files, self.now, life);
        let issued = issued.map_err(PlatformError::Certificate)?;
        // What an earlier release has left there would be shown, and refused.
        remove_whole(&credentials_file(folder, name)).map_err(PlatformError::File)?;
        let settings = issued_settings(folder, name, &self.authority, self.hub_urls.clone());
        Ok((settings, Issued::new(issued)))
    }

    /// Issues certificate and credentials into `folder` for a user of SYS or AUTH, who enters without a gatekeeper.
    ///
    /// # Errors
    /// When a file cannot be written or the account has no such role.
    pub fn issue_direct(
        &self,
        user: &UserRequest<'_>,
        identity: &ClientIdentity,
        folder: &Path,
    ) -> Result<BusSettings, PlatformError> {
        // Signed first: when nobody can sign, no certificate is issued in vain.
        let signed = self.operator.issue_user(user, self.now_s()).map_err(PlatformError::Operator)?;
        let files = CertificateFiles::named(folder, user.name);
        self.authority.issue_client(identity, &files, self.now).map_err(PlatformError::Certificate)?;
        let creds_file = credentials_file(folder, user.name);
        write_secret(&creds_file, signed.text.as_bytes()).map_err(PlatformError::File)?;
        let settings = issued_settings(folder, user.name, &self.authority, self.hub_urls.clone());
        Ok(BusSettings { creds_file: Some(creds_file), ..settings })
    }

    /// Takes back the certificates that `issuer` has issued to somebody.
    ///
    /// # Errors
    /// When a revocation list cannot be written.
    pub fn revoke_certificates(&self, issuer: &AuthorityName, issued: &Issued) -> Result<(), PlatformError> {
        for serial in &issued.serials {
            let what = Revocable::Serial(serial.clone());
            match self.authority.revoke_of(issuer, &what, Reason::PrivilegeWithdrawn, self.now) {
                // Of an authority that is retired with all that it has issued.
                Err(CertificateError::NeverIssued { .. }) | Ok(_) => {}
                Err(error) => return Err(PlatformError::Certificate(error)),
            }
        }
        Ok(())
    }

    /// One of the platform's own services, under the role's name.
    ///
    /// # Errors
    /// When a file cannot be written, or SYS or AUTH has no such role.
    pub fn issue_service(
        &self,
        account: &str,
        role: Role,
        service: &'static str,
        folder: &Path,
    ) -> Result<BusSettings, PlatformError> {
        let identity = ClientIdentity::Service { service };
        if account != SYSTEM && account != AUTH {
            return self.let_in(&identity, role.name(), folder, CERTIFICATE_LIFE).map(|(settings, _)| settings);
        }
        let expires = self.now_s() + CREDENTIALS_DAYS * 86_400;
        let user = UserRequest { account, role, name: role.name(), site: None, expires };
        self.issue_direct(&user, &identity, folder)
    }

    /// Where core finds the live streams of a shard: it connects as soon as the file is there.
    ///
    /// # Errors
    /// As [`Platform::let_in`].
    pub fn write_live_bus(&self, intake: &str) -> Result<(), PlatformError> {
        let settings = self.issue_service(intake, Role::CoreLive, "core", &self.layout.core().join(intake))?;
        write_settings(&self.layout.live_bus(intake), &bus_file(settings)).map_err(PlatformError::LiveBus)
    }

    /// Profiles for a person of the platform and of each tenant; whoever calls remembers them.
    ///
    /// # Errors
    /// As [`Platform::let_in`].
    pub fn write_profiles(&self, tenants: &[TenantSlug]) -> Result<Vec<LetIn>, PlatformError> {
        let person: UserName = PERSON.parse().map_err(PlatformError::Name)?;
        let ops = ClientIdentity::PlatformUser { user: person.clone() };
        let issued = self.write_profile(OPS, &ops, &person)?;
        let mut all = vec![LetIn { tenant: None, name: person.clone(), issued }];
        for tenant in tenants {
            let identity = ClientIdentity::User { tenant: tenant.clone(), user: person.clone() };
            let name = format!("{tenant}-admin");
            let issued = self.write_profile(&name, &identity, &person)?;
            all.push(LetIn { tenant: Some(tenant.clone()), name: person.clone(), issued });
        }
        Ok(all)
    }

    fn write_profile(
        &self,
        profile: &str,
        identity: &ClientIdentity,
        person: &UserName,
    ) -> Result<Issued, PlatformError> {
        let path = self.layout.profile(profile);
        let folder = path.with_extension("");
        let (settings, issued) = self.let_in(identity, person.as_str(), &folder, CERTIFICATE_LIFE)?;
        let profile = Profile {
            user: person.clone(),
            urls: settings.urls,
            ca_file: settings.tls.ca_file,
            cert_file: settings.tls.cert_file,
            key_file: settings.tls.key_file,
        };
        profile.write(&path).map_err(PlatformError::Profile)?;
        Ok(issued)
    }

    /// The same, for another thread.
    ///
    /// # Errors
    /// When the operator store cannot be read.
    pub fn reopen(&self) -> Result<Self, PlatformError> {
        let folder = self.layout.operator();
        let operator = OperatorStore::read(folder).map_err(PlatformError::Operator)?;
        let gone = || PlatformError::Operator(OperatorError::NoAccount(SYSTEM.to_owned()));
        Ok(Self {
            layout: self.layout.clone(),
            operator: operator.ok_or_else(gone)?,
            authority: self.authority.clone(),
            hub_urls: self.hub_urls.clone(),
            now: self.now,
        })
    }

    /// Pushes every account and waits until it is in force on every server of the hub.
    ///
    /// # Errors
    /// When a server refuses or does not converge.
    pub async fn push_accounts(&self, system: &Bus, accounts: &Accounts, hub: HubSize) -> Result<(), PlatformError> {
        for account in accounts.all() {
            push(system, account, hub.servers()).await.map_err(PlatformError::Push)?;
        }
        Ok(())
    }

    /// Makes the hub's streams and the registry's buckets, with a copy on each server.
    ///
    /// # Errors
    /// When the hub refuses them.
    pub async fn ensure_streams(&self, hub: HubSize) -> Result<(), PlatformError> {
        let folder = self.layout.provisioning();
        let bus = self.connect_service(CORE, Role::Provisioner, PROVISIONING, &folder).await?;
        for stream in StreamName::HUB {
            let spec = stream.spec();
            let made = eventually("a stream on every server", STREAMS_LIMIT, || async {
                match bus.ensure_stream(&spec, hub.servers()).await {
                    Err(error) if error.is_passing() => Err(Chain(&error).to_string()),
                    answer => Ok(answer),
                }
            });
            let made = made.await.map_err(|source| PlatformError::NoStreams(spec.name, source))?;
            made.map_err(PlatformError::Streams)?;
        }
        for bucket in MEMBER_BUCKETS {
            let made = eventually("a bucket on every server", STREAMS_LIMIT, || async {
                let made = bus.ensure_bucket(&bucket, hub.servers()).await;
                made.map_err(|error| Chain(&error).to_string())
            });
            made.await.map_err(|source| PlatformError::NoStreams(bucket.name, source))?;
        }
        Ok(())
    }

    /// Writes OPS to the database.
    ///
    /// # Errors
    /// When the database refuses, for example because the account is a tenant's.
    pub async fn write_ops_row(&self, database: &Provisioning, ops: &AccountRecord) -> Result<(), PlatformError> {
        database.put_platform_account(&ops.key, OPS).await.map_err(PlatformError::Rows)
    }

    /// Writes a tenant to the database; returns it as services know it.
    ///
    /// # Errors
    /// When the database refuses, for example a slug that another account holds.
    pub async fn write_tenant_row(
        &self,
        database: &Provisioning,
        record: &TenantRecord,
        plan: &Plan,
        account: &AccountKey,
    ) -> Result<Tenant, PlatformError> {
        let tenant = tenant_row(record, plan);
        // First: who is on the list has it.
        database.put_quota(&tenant, &plan.quota()).await.map_err(PlatformError::Rows)?;
        database.put_tenant(account, &tenant).await.map_err(PlatformError::Rows)?;
        Ok(tenant)
    }
}

/// The account of a tenant: closed when nobody of it is admitted.
pub(super) fn tenant_body(record: &TenantRecord, plan: &Plan, own: &str, core: &str, keys: &[RoleKey]) -> AccountBody {
    let body = tenant_account(plan, own, core, keys);
    if record.stage.is_open() { body } else { closed(body) }
}

/// A tenant as services know it.
#[must_use]
pub fn tenant_row(record: &TenantRecord, plan: &Plan) -> Tenant {
    Tenant {
        id: record.tenant_id(),
        slug: record.slug.clone(),
        plan: plan.name.to_string(),
        state: if record.stage.is_open() { TenantState::Active } else { TenantState::Suspended },
        // The database knows since when.
        state_since_ms: 0,
        retention_days: plan.retention_days,
        allows_unsigned: plan.allows_unsigned,
    }
}

pub(super) fn credentials_file(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("{user}.creds"))
}

/// How a user connects whose certificate was issued into `folder`.
#[must_use]
pub fn issued_settings(folder: &Path, user: &str, authority: &Authority, urls: Vec<String>) -> BusSettings {
    let files = CertificateFiles::named(folder, user);
    BusSettings {
        urls,
        tls: TlsFiles { ca_file: authority.server_root_file(), cert_file: files.cert_file, key_file: files.key_file },
        creds_file: None,
        inbox_prefix: format!("_INBOX_{user}"),
    }
}

/// OPS is built like a tenant without sites.
#[must_use]
pub fn ops_plan() -> Plan {
    Plan { leaf_links: 0, ..Plan::of(PlanName::Pro) }
}

/// How the system operator connects, with what the last start of the deployment has issued.
#[must_use]
pub fn system_settings(layout: &Layout, urls: Vec<String>) -> BusSettings {
    let authority = Authority::new(layout.authority(), TrustDomain::default());
    let (folder, name) = (layout.provisioning(), Role::SystemOperator.name());
    BusSettings {
        creds_file: Some(credentials_file(&folder, name)),
        ..issued_settings(&folder, name, &authority, urls)
    }
}
