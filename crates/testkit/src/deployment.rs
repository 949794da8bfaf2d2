//! A whole deployment of its own for a test: the product's own `up` in a temporary folder, and ways to look behind it.
//!
//! Looking uses keys that the product never issues (an unrestricted user, the database's superuser), so that a witness
//! sees what no tenant, service or person may.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::certificates::ClientIdentity;
use bulkhead_accounts::gate::AUTH;
use bulkhead_accounts::gatekeeper_files::gatekeeper_names;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::operator::{AccountRecord, SYSTEM};
use bulkhead_accounts::profile::Profile;
use bulkhead_accounts::resolver::push;
use bulkhead_accounts::tenancy::Tenancy;
use bulkhead_accounts::up::{Deployment, Options, Programs, Target, TenantOptions};
use bulkhead_bus::{Permissions, Role, TenantSlug};
use bulkhead_claims::{Claims, KeyKind, PermissionTemplate, ScopedKey, SigningKey, UserBody, credentials_text, encode};
use bulkhead_runtime::{eventually, now_ms};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;

use crate::{Endpoint, Exposition, Handshake, Identity, RawClient, find_test_tools};

/// How long a state may take to come about on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);
const EVERYTHING: &str = ">";
/// So often that each of three gatekeepers was asked.
const ADMITTED_IN_A_ROW: usize = 12;
const REFUSALS_SHOWN: usize = 5;
/// The two tenants of a trial.
pub const TRIAL: [&str; 2] = ["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"];

/// A running deployment. Dropping it kills its processes and removes its folder.
pub struct TestDeployment {
    pub up: Deployment,
    options: Options,
    home: TempDir,
}

/// A deployment that was ended in order, with all that it has left in its folder.
pub struct StoppedDeployment {
    /// What it is started with the next time.
    pub options: Options,
    home: TempDir,
}

impl StoppedDeployment {
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts it again from what it has left.
    ///
    /// # Errors
    /// When something does not start; the error holds the end of its log.
    pub async fn start(self) -> anyhow::Result<TestDeployment> {
        let Self { options, home } = self;
        // A whole start is too much for the stack of a test's thread.
        let up = Box::pin(Deployment::start(options.clone(), &|_| {})).await.context("start a deployment")?;
        Ok(TestDeployment { up, options, home })
    }
}

/// A program that was built beside this one.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the test program")?;
    // Tests lie one folder below the programs; chaos lies beside them.
    let folders = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let path = folders.clone().find(|path| path.is_file()).or_else(|| folders.last()).context("find programs")?;
    anyhow::ensure!(path.is_file(), "{} is missing: run the tests with `cargo xtask test`", path.display());
    Ok(path)
}

/// Tenants from text, one each: `acme-corp enterprise oslo/p1 oslo/p2 bergen/p1`.
///
/// # Errors
/// When a name is none.
pub fn tenants(lines: &[&str]) -> anyhow::Result<Vec<TenantOptions>> {
    let tenant = |line: &&str| -> anyhow::Result<TenantOptions> {
        let mut words = line.split_whitespace();
        let (slug, plan) = words.next().zip(words.next()).context("a tenant has a slug and a plan")?;
        let mut tenant = TenantOptions { slug: slug.parse()?, plan: plan.parse()?, sites: vec![] };
        for word in words {
            let (site, poller) = word.split_once('/').context("a poller is site/name")?;
            let (site, poller) = (site.parse()?, poller.parse()?);
            match tenant.sites.iter_mut().find(|(known, _)| *known == site) {
                Some((_, pollers)) => pollers.push(poller),
                None => tenant.sites.push((site, vec![poller])),
            }
        }
        Ok(tenant)
    };
    lines.iter().map(tenant).collect()
}

impl TestDeployment {
    /// The two tenants of a trial: `acme-corp` with oslo/p1 and `xyz-inc` with lima/p1.
    ///
    /// # Errors
    /// When something does not start; the error holds the end of its log.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&TRIAL, &[]).await
    }

    /// Other tenants, as [`tenants`] reads them, and further targets.
    ///
    /// # Errors
    /// When something does not start; the error holds the end of its log.
    pub async fn start_with(lines: &[&str], targets: &[&str]) -> anyhow::Result<Self> {
        let targets = targets.iter().map(|target| target.parse::<Target>()).collect::<Result<_, _>>()?;
        Self::start_in(Self::home_folder()?, lines, |options| options.targets = targets).await
    }

    /// Tenants as [`tenants`] reads them, on a hub of three servers.
    ///
    /// # Errors
    /// When something does not start; the error holds the end of its log.
    pub async fn start_cluster(lines: &[&str]) -> anyhow::Result<Self> {
        Self::start_in(Self::home_folder()?, lines, |options| options.hub_servers = Some(HubSize::Three)).await
    }

    /// A folder for a deployment to live in.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn home_folder() -> anyhow::Result<TempDir> {
        let home = tempfile::Builder::new().prefix("bulkhead-test-").tempdir().context("make a folder")?;
        // So that the database's user may pass; what is secret has closed folders of its own.
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o711)).context("open the folder")?;
        Ok(home)
    }

    /// In a folder that was prepared, with options that differ.
    ///
    /// # Errors
    /// When something does not start; the error holds the end of its log.
    pub async fn start_in(home: TempDir, lines: &[&str], change: impl FnOnce(&mut Options)) -> anyhow::Result<Self> {
        let mut options = Options {
            home: home.path().to_owned(),
            fresh: false,
            hub_servers: None,
            tools: find_test_tools()?,
            programs: Programs::beside(program("bulkhead")?),
            tenants: tenants(lines)?,
            targets: vec![],
            leaf_urls: BTreeMap::new(),
        };
        change(&mut options);
        StoppedDeployment { options, home }.start().await
    }

    /// Ends it in order and keeps its folder, to be started again.
    ///
    /// # Errors
    /// When a process can be neither asked nor killed.
    pub async fn pause(self) -> anyhow::Result<StoppedDeployment> {
        self.up.stop().await.context("stop the deployment")?;
        Ok(StoppedDeployment { options: self.options, home: self.home })
    }

    /// Leaves the folder where it is when the deployment ends, for a look.
    pub fn keep(&mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        self.home.path().to_owned()
    }

    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When a process can be neither asked nor killed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.up.stop().await.context("stop the deployment")
    }

    /// Ends it in order and keeps its folder.
    ///
    /// # Errors
    /// When a process can be neither asked nor killed.
    pub async fn stop_and_keep(self) -> anyhow::Result<TempDir> {
        self.up.stop().await.context("stop the deployment")?;
        Ok(self.home)
    }

    /// The real `bulkhead` program, asked about this deployment.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn bulkhead(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::new(program("bulkhead")?);
        command.arg("--home").arg(self.home()).args(args).kill_on_drop(true);
        tokio::time::timeout(LIMIT, command.output()).await.context("bulkhead took too long")?.context("run bulkhead")
    }

    /// The rows that `bulkhead <args> --json` prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub async fn rows(&self, args: &[&str]) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut args = args.to_vec();
        args.push("--json");
        let output = self.bulkhead(&args).await?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "bulkhead {args:?} failed: {errors}\n{}", self.refusals());
        let text = String::from_utf8(output.stdout).context("read rows")?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// The last connections that each gatekeeper has refused, and why, to be shown when something fails.
    #[must_use]
    pub fn refusals(&self) -> String {
        let of_one = |name: String| {
            let log = std::fs::read_to_string(self.up.layout.log(&name)).unwrap_or_default();
            let refusals: Vec<&str> = log.lines().filter(|line| line.contains("is refused")).collect();
            let last = refusals.len().saturating_sub(REFUSALS_SHOWN);
            refusals[last..].iter().map(|line| format!("{name}: {line}\n")).collect::<String>()
        };
        gatekeeper_names(self.up.hub_size()).into_iter().map(of_one).collect()
    }

    /// Sees every row of every tenant: the database's superuser. The schema `everywhere` shows them, whichever schema they are
    /// in.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn witness(&self) -> anyhow::Result<PgPool> {
        let url = self.up.postgres.superuser_url();
        let url = url.strip_suffix("/postgres").context("the superuser's address names a database")?;
        let pool = PgPoolOptions::new().max_connections(2).connect(&format!("{url}/bulkhead")).await;
        let pool = pool.context("connect as witness")?;
        crate::everywhere::make(&pool).await?;
        Ok(pool)
    }

    /// Stored results of a tenant, by slug.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn stored(&self, witness: &PgPool, tenant: &str) -> anyhow::Result<i64> {
        let sql = "select count(*) from everywhere.result r join platform.tenant t using (tenant_id) where t.slug = $1";
        sqlx::query_scalar(sql).bind(tenant).fetch_one(witness).await.context("count results")
    }

    /// Waits until every check of every poller has a result that was measured after this call.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn wait_for_results(&self, witness: &PgPool) -> anyhow::Result<()> {
        let since = now_ms();
        let expected = i64::try_from(self.up.checks).context("count checks")?;
        let waited = eventually("a new result of every check", LIMIT, || async {
            let sql = "select count(*) from everywhere.check_state where extract(epoch from slot) * 1000 >= $1::float8";
            let fresh: i64 = sqlx::query_scalar(sql)
                .bind(since as f64)
                .fetch_one(witness)
                .await
                .map_err(|error| error.to_string())?;
            if fresh >= expected { Ok(()) } else { Err(format!("{fresh} of {expected} checks")) }
        });
        waited.await.context("wait for results")
    }

    /// Status and body of a page of a health listener; `who` is `core`, or `<tenant>/<site>/<poller>`.
    ///
    /// # Errors
    /// When there is no such process, or it does not answer.
    pub async fn health(&self, who: &str, path: &str) -> anyhow::Result<(u16, String)> {
        let found = self.up.health_ports.iter().find(|(name, _)| name == who);
        let (_, port) = found.with_context(|| format!("there is no {who}"))?;
        crate::scrape::get(*port, path).await
    }

    /// What `who` counts and measures now.
    ///
    /// # Errors
    /// When it does not answer, or not in the OpenMetrics format.
    pub async fn metrics(&self, who: &str) -> anyhow::Result<Exposition> {
        let (status, body) = self.health(who, "/metrics").await?;
        anyhow::ensure!(status == 200, "/metrics of {who} answers {status}: {body}");
        Exposition::parse(&body).with_context(|| format!("read /metrics of {who}"))
    }

    pub(crate) fn endpoint(port: u16, handshake: Handshake) -> Endpoint {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Endpoint { addr, server_name: "localhost".to_owned(), handshake }
    }

    /// Where clients connect.
    #[must_use]
    pub fn hub(&self) -> Endpoint {
        Self::endpoint(self.up.hub_servers[0].place.client_port, Handshake::AfterInfo)
    }

    /// Where leaves connect.
    #[must_use]
    pub fn hub_for_leaves(&self) -> Endpoint {
        Self::endpoint(self.up.hub_servers[0].place.leaf_port, Handshake::First)
    }

    fn trusting_hub(&self) -> Identity {
        Identity::trusting(self.up.platform.authority.server_root_file())
    }

    /// What a site's own leaf shows to the hub.
    ///
    /// # Errors
    /// When a name is none.
    pub fn leaf_identity(&self, tenant: &str, site: &str) -> anyhow::Result<Identity> {
        let folder = self.up.layout.site(&tenant.parse()?, &site.parse()?);
        let tls = folder.join("tls");
        Ok(self.trusting_hub().with_certificate(tls.join("leaf.crt"), tls.join("leaf.key")))
    }

    /// A person: `ops`, or `<tenant>-admin`.
    ///
    /// # Errors
    /// When there is no such profile.
    pub fn person_identity(&self, profile: &str) -> anyhow::Result<Identity> {
        let profile = Profile::read(&self.up.layout.profile(profile)).context("read profile")?;
        Ok(self.trusting_hub().with_certificate(profile.cert_file, profile.key_file))
    }

    /// The account of a tenant as it was last signed.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn account(&self, name: &str) -> anyhow::Result<AccountRecord> {
        self.up.platform.operator.account(name)?.with_context(|| format!("there is no account {name}"))
    }

    /// An account's key, as subjects carry it.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn key_of(&self, account: &str) -> anyhow::Result<String> {
        Ok(self.account(account)?.key.to_string())
    }

    /// Signs an account's body after `change`, and pushes it until it is in force: how a test weakens a deployment.
    ///
    /// # Errors
    /// When the hub does not take it.
    pub async fn change_account(
        &self,
        name: &str,
        change: impl FnOnce(&mut bulkhead_claims::AccountBody),
    ) -> anyhow::Result<AccountRecord> {
        self.change_account_on(self.up.hub_size().servers(), name, change).await
    }

    /// As [`TestDeployment::change_account`] when only `servers` of the hub's servers run.
    ///
    /// # Errors
    /// When those do not take it.
    pub async fn change_account_on(
        &self,
        servers: usize,
        name: &str,
        change: impl FnOnce(&mut bulkhead_claims::AccountBody),
    ) -> anyhow::Result<AccountRecord> {
        let mut body = self.account(name)?.claims.nats;
        change(&mut body);
        let signed = self.up.platform.operator.sign_body(name, body, now_ms() / 1_000).context("sign account")?;
        push(&self.up.system, &signed, servers).await.context("push account")?;
        Ok(signed)
    }

    /// A user of `account` that may publish and subscribe everything there, which the product never issues: what the
    /// operator weakens on purpose. SYS and AUTH are entered by credentials, all others by a certificate.
    ///
    /// # Errors
    /// When the hub does not take the account's new signing key, or the gatekeepers' new record.
    pub async fn unrestricted_identity(&self, account: &str) -> anyhow::Result<Identity> {
        match account {
            SYSTEM | AUTH => self.unrestricted_credentials(account).await,
            account => self.unrestricted_person(account).await,
        }
    }

    async fn unrestricted_credentials(&self, account: &str) -> anyhow::Result<Identity> {
        let plain = SigningKey::generate(KeyKind::Account);
        let public = plain.public().to_owned();
        self.change_account(account, |body| body.signing_keys.push(ScopedKey::Plain(public))).await?;
        let key = SigningKey::generate(KeyKind::User);
        let mut body = UserBody::scoped(self.account(account)?.key.to_string(), vec![]);
        body.publish.allow = vec![EVERYTHING.to_owned()];
        body.subscribe.allow = vec![EVERYTHING.to_owned()];
        for limit in ["subs", "data", "payload"] {
            body.unknown.insert(limit.to_owned(), (-1).into());
        }
        let mut claims = Claims::new(key.public().to_owned(), "witness".to_owned(), now_ms() / 1_000, body);
        let token = encode(&mut claims, &plain).context("sign witness")?;
        let creds_file = self.home().join(format!("witness-{}.creds", key.public()));
        let text = credentials_text(&token, &key).context("write witness")?;
        std::fs::write(&creds_file, text).context("write witness")?;
        // Any certificate of the platform's will do: these accounts are entered by credentials.
        Ok(self.person_identity("ops")?.with_creds(creds_file))
    }

    /// A person with a role that the account does not have otherwise, and with a key of its own.
    async fn unrestricted_person(&self, account: &str) -> anyhow::Result<Identity> {
        let tenant: Option<TenantSlug> = account.parse().ok();
        let role = if tenant.is_some() { Role::PlatformAdmin } else { Role::Viewer };
        let name = format!("witness-{account}");
        let tenancy = Tenancy::open(self.home().to_owned())?;
        let mut signed = self.account(account)?;
        if tenancy.gate_of(&signed)?.is_none() {
            // Of a test that has made the account by itself, on a hub that takes credentials.
            return self.unrestricted_credentials(account).await;
        }
        if signed.role_key(role).is_none() {
            signed = self.add_witness_role(account, role).await?;
        }
        let links = tenancy.link(self.up.system.clone()).context("open the platform")?;
        let mut body = tenancy.gate_of(&signed)?.with_context(|| format!("{account} has no gate"))?;
        body.people.insert(name.clone(), role.name().to_owned());
        tenancy.tell(&links, &signed, &body).await.context("tell the gatekeepers of the witness")?;
        let identity = match tenant {
            Some(tenant) => ClientIdentity::User { tenant, user: name.parse()? },
            None => ClientIdentity::PlatformUser { user: name.parse()? },
        };
        let folder = self.home().join("witnesses").join(uuid::Uuid::new_v4().to_string());
        let (settings, _) = tenancy.platform.let_in(&identity, &name, &folder, time::Duration::hours(1))?;
        let identity = self.trusting_hub().with_certificate(settings.tls.cert_file, settings.tls.key_file);
        // Each gatekeeper hears of it in a moment, and any of them may be asked next.
        let admitted = eventually("a witness who is let in by all", LIMIT, || async {
            for _ in 0..ADMITTED_IN_A_ROW {
                RawClient::connect(&self.hub(), &identity).await.map(drop).map_err(|error| format!("{error:#}"))?;
            }
            Ok::<_, String>(())
        });
        admitted.await?;
        Ok(identity)
    }

    async fn add_witness_role(&self, account: &str, role: Role) -> anyhow::Result<AccountRecord> {
        let key = SigningKey::generate(KeyKind::Account);
        self.up.platform.operator.keys().put(&key).context("keep the witness's key")?;
        let (publish, subscribe) = (vec![EVERYTHING.to_owned()], vec![EVERYTHING.to_owned()]);
        let everything = PermissionTemplate::new(Permissions { publish, subscribe }, &["STANDARD"]);
        let scoped = ScopedKey::new(key.public().to_owned(), role.name(), everything);
        self.change_account(account, |body| body.signing_keys.push(scoped)).await
    }

    /// Hears everything that is said in `account`.
    ///
    /// # Errors
    /// When the hub does not admit it.
    pub async fn wiretap(&self, account: &str) -> anyhow::Result<RawClient> {
        let identity = self.unrestricted_identity(account).await?;
        let client = RawClient::connect(&self.hub(), &identity).await.context("connect a wiretap")?;
        client.subscribe(EVERYTHING).await.context("subscribe a wiretap")?;
        client.flush().await.context("subscribe a wiretap")?;
        Ok(client)
    }
}
