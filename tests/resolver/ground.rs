//! A deployment with accounts of a test's own beside the product's, and users of them that the test may connect.

use anyhow::Context;
use bulkhead_accounts::hub_files::HUB_CONFIG;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::operator::{AccountRecord, OperatorStore, UserRequest};
use bulkhead_accounts::plan::{Plan, PlanName};
use bulkhead_accounts::render::{RoleKey, tenant_account};
use bulkhead_accounts::resolver::{
    Base, ConnectionFacts, KnownServers, Order, Patience, PushError, PushReport, connections, push_order,
};
use bulkhead_accounts::up::system_settings;
use bulkhead_bus::{Role, SiteName};
use bulkhead_claims::{AccountBody, Claims, KeyKind, SigningKey, decode_json, encode};
use bulkhead_runtime::{Bus, BusSettings, eventually, now_ms};
use bulkhead_testkit::deployment::{LIMIT, TRIAL};
use bulkhead_testkit::{Identity, TestDeployment};

pub(crate) struct Ground {
    pub(crate) deployment: TestDeployment,
    pub(crate) known: KnownServers,
}

pub(crate) fn now_s() -> i64 {
    now_ms() / 1_000
}

impl Ground {
    pub(crate) async fn start(hub: HubSize) -> anyhow::Result<Self> {
        let home = TestDeployment::home_folder()?;
        let mut deployment =
            TestDeployment::start_in(home, &TRIAL[..1], |options| options.hub_servers = Some(hub)).await?;
        unpin(&mut deployment).await?;
        Ok(Self { deployment, known: KnownServers::of(hub) })
    }

    /// Starts a server that was stopped, as weak as it was.
    pub(crate) fn restart(&mut self, server: usize) -> anyhow::Result<()> {
        let up = &mut self.deployment.up;
        let server = up.hub_servers.iter_mut().find(|one| one.place.number == server).context("such a server")?;
        Ok(server.child.restart()?)
    }

    pub(crate) fn system(&self) -> &Bus {
        &self.deployment.up.system
    }

    pub(crate) fn operator(&self) -> &OperatorStore {
        &self.deployment.up.platform.operator
    }

    /// A tenant's account, signed and not pushed; as it is when there is one of that name.
    pub(crate) fn account(&self, name: &str) -> anyhow::Result<AccountRecord> {
        let core = self.deployment.key_of("core")?;
        let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Free), own, &core, keys);
        Ok(self.operator().ensure_account(name, &Role::TENANT, now_s(), render)?)
    }

    /// The account signed anew after `change`, and not pushed.
    pub(crate) fn changed(&self, name: &str, change: impl FnOnce(&mut AccountBody)) -> anyhow::Result<AccountRecord> {
        let mut body = self.deployment.account(name)?.claims.nats;
        change(&mut body);
        Ok(self.operator().sign_body(name, body, now_s())?)
    }

    /// A token for the account as it is, at another time and by another signer than the store's.
    pub(crate) fn token_by(&self, account: &AccountRecord, signer: &SigningKey, iat: i64) -> anyhow::Result<String> {
        let body = account.claims.nats.clone();
        let mut claims = Claims::new(account.key.to_string(), account.name.clone(), iat, body);
        Ok(encode(&mut claims, signer)?)
    }

    /// The operator key that signs accounts.
    pub(crate) fn signer(&self) -> anyhow::Result<SigningKey> {
        let public = self.deployment.account("core")?.claims.iss;
        Ok(self.operator().keys().read(&public, KeyKind::Operator)?)
    }

    pub(crate) fn identity_key(&self) -> anyhow::Result<SigningKey> {
        let claims = decode_json(&self.operator().token)?;
        Ok(self.operator().keys().read(&claims.iss, KeyKind::Operator)?)
    }

    pub(crate) async fn push(&self, account: &AccountRecord, base: Base) -> Result<PushReport, PushError> {
        self.push_token(account, &account.token, base).await
    }

    pub(crate) async fn push_token(
        &self,
        account: &AccountRecord,
        token: &str,
        base: Base,
    ) -> Result<PushReport, PushError> {
        let order = Order { name: &account.name, account: &account.key, token, base };
        let patience = Patience::Present(std::time::Duration::from_secs(4));
        push_order(self.system(), &order, &self.known, patience).await
    }

    /// How a new user of a role connects.
    pub(crate) fn user(&self, account: &str, role: Role, name: &str) -> anyhow::Result<BusSettings> {
        let site: SiteName = "oslo".parse()?;
        let request = UserRequest { account, role, name, site: Some(&site), expires: now_s() + 3_600 };
        let issued = self.operator().issue_user(&request, now_s())?;
        let path = self.deployment.home().join(format!("{account}-{name}.creds"));
        std::fs::write(&path, issued.text.as_bytes()).context("write credentials")?;
        let urls = self.deployment.up.platform.hub_urls.clone();
        let system = system_settings(&self.deployment.up.layout, urls);
        Ok(BusSettings { creds_file: Some(path), inbox_prefix: format!("_INBOX_{name}"), ..system })
    }

    /// The same for a hostile client; any certificate of the platform's will do.
    pub(crate) fn identity(&self, account: &str, role: Role, name: &str) -> anyhow::Result<Identity> {
        let settings = self.user(account, role, name)?;
        let creds_file = settings.creds_file.context("a user has credentials")?;
        let base = if role == Role::Leaf {
            self.deployment.leaf_identity("acme-corp", "oslo")?
        } else {
            self.deployment.person_identity("ops")?
        };
        Ok(base.with_creds(creds_file))
    }

    pub(crate) async fn connections(&self, account: &str) -> anyhow::Result<Vec<ConnectionFacts>> {
        Ok(connections(self.system(), Some(account), self.known.count()).await?)
    }
}

/// What is tested here is what servers do with tokens, so that these have to be let in: nothing is pinned any more, and no
/// detective looks at who comes.
async fn unpin(deployment: &mut TestDeployment) -> anyhow::Result<()> {
    let up = &mut deployment.up;
    for server in &mut up.hub_servers {
        let path = up.layout.hub_server(server.place.number).join(HUB_CONFIG);
        let text = std::fs::read_to_string(&path)?;
        let pins = text.lines().filter(|line| line.starts_with("resolver_pinned_accounts")).count();
        anyhow::ensure!(pins == 1, "{pins} lines pin accounts");
        let weak: Vec<&str> = text.lines().filter(|line| !line.starts_with("resolver_pinned_accounts")).collect();
        std::fs::write(&path, weak.join("\n"))?;
        server.child.kill()?;
        server.child.restart()?;
    }
    up.wait_until_replicas_current().await?;
    let core = up.platform.operator.account("core")?.context("there is a core")?;
    let (system, servers) = (up.system.clone(), up.hub_servers.len());
    let back = eventually("core at the hub again", LIMIT, || async {
        let there = connections(&system, Some(core.key.as_str()), servers).await.map_err(|error| error.to_string())?;
        if there.len() >= 2 { Ok(()) } else { Err(format!("{} are there", there.len())) }
    });
    back.await?;
    for gatekeeper in &mut up.gatekeepers {
        gatekeeper.child.stop().await?;
    }
    Ok(())
}

/// What a change is made from.
pub(crate) fn base_of(account: &AccountRecord) -> Base {
    Base::of_token(&account.token).unwrap_or(Base::Absent)
}
