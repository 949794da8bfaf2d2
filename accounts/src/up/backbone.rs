//! The hub with gatekeepers and core behind it: what sites link up to. It is started whole, whatever number of servers the hub has.

use std::time::Duration;

use bulkhead_bus::payload::{MemberQuery, MemberRow, Query, StatusRow};
use bulkhead_bus::{CoreVerb, RegistryVerb, Tenant, TenantSlug, TenantSubject};
use bulkhead_runtime::{Bus, Chain, eventually};
use bulkhead_store::Provisioning;
use bulkhead_store::admin::Passwords;

use super::child::{Child, ChildError};
use super::deployment::DeploymentError;
use super::gatekeepers::{self, Gatekeeper, stop_gatekeepers};
use super::hub::HubServer;
use super::layout::Layout;
use super::platform::{Accounts, PERSON};
use super::postgres::Postgres;
use super::sharers::{self, Sharer, stop_sharers};
use super::start::Starter;
use crate::client::{ANSWER_LIMIT, ClientError, ask, query};
use crate::hub_size::HubSize;
use crate::profile::Profile;
use crate::tenancy::{Links, Standing, Tenancy, ensure_gate, remember_people};

const READY_LIMIT: Duration = Duration::from_secs(60);

/// The database and the ways into it.
pub(super) struct Base {
    pub(super) postgres: Postgres,
    pub(super) passwords: Passwords,
    pub(super) database: Provisioning,
}

/// A running hub, and core on it.
pub(super) struct Backbone {
    pub(super) tenancy: Tenancy,
    pub(super) accounts: Accounts,
    pub(super) tenants: Vec<Tenant>,
    pub(super) system: Bus,
    /// What provisioning goes on with.
    pub(super) links: Links,
    pub(super) hub: Vec<HubServer>,
    pub(super) gatekeepers: Vec<Gatekeeper>,
    pub(super) core: Child,
    pub(super) sharers: Vec<Sharer>,
}

impl Starter<'_> {
    /// Brings the rows of every tenant where its plan puts them: of an earlier release, which had no schemas for one tenant,
    /// and of a move that was cut short. Core is at work meanwhile.
    async fn settle_rows(&self, database: &Provisioning, tenants: &[Tenant]) -> Result<(), DeploymentError> {
        let unsettled = database.unsettled().await.map_err(DeploymentError::Rows)?;
        for tenant in tenants.iter().filter(|tenant| unsettled.contains(&tenant.id)) {
            (self.announce)(&format!("moving the rows of {} where its plan puts them", tenant.slug));
            // One tenant's trouble keeps nobody from starting; the doctor names it.
            if let Err(error) = database.move_tenant(tenant, &|_| {}).await {
                (self.announce)(&format!("the rows of {} stay where they are: {}", tenant.slug, Chain(&error)));
            }
        }
        Ok(())
    }

    /// Starts hub, gatekeepers and core, and returns when core answers.
    pub(super) async fn start_backbone(&mut self, base: &Base, size: HubSize) -> Result<Backbone, DeploymentError> {
        let places = self.choose_places(size)?;
        (self.announce)("making operator, accounts and certificates");
        let tenancy = self.make_platform(&places, size)?;
        let lock = tenancy.lock().map_err(DeploymentError::tenancy)?;
        for tenant in &self.options.tenants {
            tenancy.adopt(&base.database, &tenant.slug, tenant.plan).await.map_err(DeploymentError::tenancy)?;
        }
        let mut accounts = tenancy.render_all().map_err(DeploymentError::tenancy)?;
        tenancy.place_all(&mut accounts).await.map_err(DeploymentError::tenancy)?;
        let platform = &tenancy.platform;
        // Whoever was put out stays out; only of the platform somebody has to be able to ask.
        let is_put_out = |slug: &TenantSlug| {
            let record = accounts.tenants.iter().map(|(record, _)| record).find(|record| record.slug == *slug);
            let person = record.and_then(|record| record.people.iter().find(|(name, _)| name.as_str() == PERSON));
            person.is_some_and(|(_, person)| person.standing == Standing::Revoked)
        };
        let slugs = self.options.tenants.iter().map(|tenant| tenant.slug.clone());
        let slugs: Vec<TenantSlug> = slugs.filter(|slug| !is_put_out(slug)).collect();
        let people = platform.write_profiles(&slugs).map_err(DeploymentError::Platform)?;
        remember_people(self.layout, &people, tenancy.now_s()).map_err(DeploymentError::tenancy)?;
        (self.announce)(match size {
            HubSize::One => "starting the hub",
            HubSize::Three => "starting the hub's three servers",
        });
        let mut hub = self.start_hub(platform, &places)?;
        let system = while_running(children(&mut hub), platform.connect_hub(size)).await?;
        (self.announce)("pushing accounts until they are in force");
        while_running(children(&mut hub), platform.push_accounts(&system, &accounts, size)).await?;
        // The servers were started with the system's account.
        let system_account = platform.operator.system().map_err(DeploymentError::Operator)?;
        let in_force = accounts.all().chain([&system_account]);
        tenancy.remember_pushed(in_force).map_err(DeploymentError::tenancy)?;
        (self.announce)("starting the gatekeepers");
        let links = tenancy.link(system.clone()).map_err(DeploymentError::tenancy)?;
        let gate = links.gate().await.map_err(DeploymentError::tenancy)?;
        ensure_gate(gate, size).await.map_err(DeploymentError::tenancy)?;
        let told: Vec<_> = accounts.all().collect();
        tenancy.tell_gate_all(&links, &told, &|_| {}).await.map_err(DeploymentError::tenancy)?;
        let mut gatekeepers = self.start_gatekeepers(platform, size)?;
        // The first that they let in is provisioning itself.
        let running = children(&mut hub).into_iter().chain(gatekeepers::children(&mut gatekeepers)).collect();
        while_running(running, platform.ensure_streams(size)).await?;
        let tenants = tenancy.write_rows(&base.database, &accounts).await.map_err(DeploymentError::tenancy)?;
        drop(lock);
        (self.announce)("starting core");
        let shards: Vec<u32> = accounts.intake.keys().copied().collect();
        let mut core = self.start_core(platform, &base.postgres, &base.passwords, &shards)?;
        while_running(vec![&mut core], core_answers(self.layout)).await?;
        self.settle_rows(&base.database, &tenants).await?;
        (self.announce)("starting the registry and poller-dispatch");
        let mut sharers = self.start_sharers(platform, (&base.postgres, &base.passwords), size)?;
        while_running(sharers::children(&mut sharers), registry_answers(self.layout)).await?;
        Ok(Backbone { tenancy, accounts, tenants, system, links, hub, gatekeepers, core, sharers })
    }
}

impl Backbone {
    /// Ends it in order.
    pub(super) async fn stop(mut self) -> Result<(), ChildError> {
        stop_sharers(&mut self.sharers).await?;
        self.core.stop().await?;
        stop_gatekeepers(&mut self.gatekeepers).await?;
        stop_hub(&mut self.hub).await
    }
}

/// Ends all servers of the hub.
pub(super) async fn stop_hub(hub: &mut [HubServer]) -> Result<(), ChildError> {
    for server in hub {
        server.child.stop().await?;
    }
    Ok(())
}

pub(super) fn children(hub: &mut [HubServer]) -> Vec<&mut Child> {
    hub.iter_mut().map(|server| &mut server.child).collect()
}

/// Waits for `ready` while `children` run; the early end of one is the better error.
pub(super) async fn while_running<T, E: Into<DeploymentError>>(
    mut children: Vec<&mut Child>,
    ready: impl Future<Output = Result<T, E>>,
) -> Result<T, DeploymentError> {
    let mut ready = std::pin::pin!(ready);
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut ready => return done.map_err(Into::into),
            _ = looks.tick() => {
                for child in &mut children {
                    child.check_running().map_err(DeploymentError::Child)?;
                }
            }
        }
    }
}

/// Asks the registry over the bus, as a person of the platform would.
async fn registry_answers(layout: &Layout) -> Result<(), DeploymentError> {
    let profile = Profile::read(&layout.profile("ops")).map_err(DeploymentError::Profile)?;
    let subject = TenantSubject::Registry { user: profile.user.clone(), verb: RegistryVerb::ListMembers };
    let answered = eventually("an answer of the registry", READY_LIMIT, || async {
        let bus = Bus::connect(&profile.bus_settings(), "bulkhead up").await.map_err(|error| error.to_string())?;
        let reply = ask::<MemberRow>(&bus, &subject, &MemberQuery::default(), ANSWER_LIMIT).await;
        reply.map(|_| ()).map_err(|error| Chain(&error).to_string())
    });
    answered.await.map_err(|source| DeploymentError::NotReady("the registry is not ready".to_owned(), source))
}

/// Asks core over the bus, as a person of the platform would.
pub(super) async fn core_answers(layout: &Layout) -> Result<(), DeploymentError> {
    let profile = Profile::read(&layout.profile("ops")).map_err(DeploymentError::Profile)?;
    let answered = eventually("an answer of core", READY_LIMIT, || async {
        let bus = Bus::connect(&profile.bus_settings(), "bulkhead up").await.map_err(|error| error.to_string())?;
        let reply: Result<Vec<StatusRow>, ClientError> =
            query(&bus, &profile.user, CoreVerb::ShowStatus, &Query::default()).await;
        reply.map(|_| ()).map_err(|error| error.to_string())
    });
    answered.await.map_err(|source| DeploymentError::NotReady("core is not ready".to_owned(), source))
}
