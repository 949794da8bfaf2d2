//! A deployment whose tenants grow in number, most of them by a quick path.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::operator::AccountRecord;
use bulkhead_accounts::plan::{Plan, PlanName};
use bulkhead_accounts::tenancy::{Links, Overwrite, Tenancy, TenantRecord, TenantStage, place};
use bulkhead_bus::{AccountKey, TenantSlug};
use bulkhead_testkit::TestDeployment;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// The tenant that is there from the start, with a leaf and a poller that measure all the time.
pub(super) const FIRST: &str = "first";
/// So many are rendered before they are pushed together.
const FILL_AT_ONCE: usize = 1_000;
const PUSHES_MOST: usize = 5;

pub(super) struct Town {
    pub(super) deployment: TestDeployment,
    pub(super) tenancy: Tenancy,
    pub(super) links: Links,
    pub(super) witness: PgPool,
    tenants: usize,
}

impl Town {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let home = TestDeployment::home_folder()?;
        let line = format!("{FIRST} enterprise site/p1");
        let deployment =
            TestDeployment::start_in(home, &[&line], |options| options.hub_servers = Some(HubSize::One)).await?;
        let tenancy = Tenancy::open(deployment.home().to_owned()).context("open the platform")?;
        let links = tenancy.connect().await.context("connect as provisioning")?;
        let witness = deployment.witness().await?;
        Ok(Self { deployment, tenancy, links, witness, tenants: 1 })
    }

    /// How many there are.
    pub(super) fn tenants(&self) -> usize {
        self.tenants
    }

    /// The slug of the next one, who is counted from now on.
    pub(super) fn next_slug(&mut self) -> anyhow::Result<TenantSlug> {
        self.tenants += 1;
        format!("tenant-{}", self.tenants).parse().context("name a tenant")
    }

    /// A command takes the time when it starts; here one process is many commands.
    pub(super) fn set_clock(&mut self) {
        self.tenancy.platform.now = OffsetDateTime::now_utc();
    }

    /// Grows to `size` tenants: everything is made that `tenant add` makes, but many are pushed at once, nothing is
    /// journalled and nobody is proved. Says how many came and how long that took.
    pub(super) async fn fill(&mut self, size: usize, say: &dyn Fn(&str)) -> anyhow::Result<(usize, Duration)> {
        let (before, began) = (self.tenants, Instant::now());
        while self.tenants < size {
            let count = (size - self.tenants).min(FILL_AT_ONCE);
            let accounts = self.render_many(count).await?;
            self.push_many(&accounts.iter().collect::<Vec<_>>()).await?;
            for account in &accounts {
                self.tenancy.tell_gate(&self.links, account).await.context("tell the gatekeepers")?;
            }
            let keys = accounts.iter().map(|account| Ok((account.name.parse()?, Some(account.key.clone()))));
            self.import_live(&keys.collect::<anyhow::Result<_>>()?).await?;
            say(&format!("{} of {size} tenants, {:.0} s", self.tenants, began.elapsed().as_secs_f64()));
        }
        Ok((self.tenants - before, began.elapsed()))
    }

    async fn render_many(&mut self, count: usize) -> anyhow::Result<Vec<AccountRecord>> {
        let plan = Plan::of(PlanName::Pro);
        let mut accounts = Vec::new();
        for _ in 0..count {
            self.set_clock();
            let slug = self.next_slug()?;
            let (tenancy, platform) = (&self.tenancy, &self.tenancy.platform);
            let mut record = TenantRecord::new(slug, Uuid::new_v4(), plan.plan_ref(), tenancy.now_s());
            record.stage = TenantStage::Active;
            let account = tenancy.render(&record).context("render a tenant")?;
            record.account = Some(account.key.clone());
            tenancy.records.write(&record).context("write a record")?;
            if let Some(database) = self.links.database().await? {
                platform.write_tenant_row(database, &record, &plan, &account.key).await.context("write a row")?;
            }
            accounts.push(account);
        }
        Ok(accounts)
    }

    /// A hub that is busy with many may be late for one: those are pushed once more, as an operator would.
    async fn push_many(&self, accounts: &[&AccountRecord]) -> anyhow::Result<()> {
        let mut left = accounts.to_vec();
        let mut failed = BTreeMap::new();
        for _ in 0..PUSHES_MOST {
            let pushed = self.links.push_all(&left, Overwrite::Refuse, &|_| ()).await.context("push accounts")?;
            failed = pushed.failed;
            left.retain(|account| failed.contains_key(&account.name));
            if left.is_empty() {
                return Ok(());
            }
        }
        bail!("{} accounts are not in force, such as {:?}", left.len(), failed.iter().next())
    }

    async fn import_live(&self, wanted: &BTreeMap<TenantSlug, Option<AccountKey>>) -> anyhow::Result<()> {
        let (intake, platform) = (&self.tenancy.intake, &self.tenancy.platform);
        let mut shards = intake.shards().context("read shards")?;
        for number in place(&mut shards, wanted) {
            let shard = shards.get(&number).context("a shard that changed is there")?;
            let account = platform.render_intake(number, shard).context("render a shard")?;
            self.push_many(&[&account]).await?;
            self.tenancy.tell_gate(&self.links, &account).await.context("tell the gatekeepers")?;
            if !platform.layout.live_bus(&account.name).exists() {
                platform.write_live_bus(&account.name).context("write a live bus")?;
            }
            intake.write(number, shard).context("write a shard")?;
        }
        Ok(())
    }

    /// What the hub has in memory.
    pub(super) fn hub_bytes(&mut self) -> anyhow::Result<u64> {
        resident_bytes(self.deployment.up.hub().pid())
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.deployment.stop().await
    }
}

/// What a process has in memory, as the kernel counts it.
pub(super) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the status of a process")?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    let kibibytes: u64 = kibibytes.context("a process says what it has in memory")?.trim().parse()?;
    Ok(kibibytes * 1_024)
}
