//! What dispatch shares out in every run: checks of a tenant, beside those in the settings of its pollers, which nobody hands over.
//!
//! At the first tenant's site a second poller is there to take them over, and is never broken itself. The other tenant's only
//! poller keeps what it has, whatever becomes of it.

use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::up::Child;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::LIMIT;

use super::plan::Part;
use super::world::{LEDGER, POLLER, Tenant, World};
use crate::operator::Operator;
use crate::shared_checks::checks_file;

/// Whoever takes over from the real poller.
const PARTNER: &str = "p2";
/// After many leases have ended at once, nobody is believed to be lost for a while.
const BELIEVED_LIMIT: Duration = Duration::from_secs(120);

/// How many checks of a tenant are shared out, and how often each is run: as often as its plan allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared {
    count: usize,
    pub(super) interval_s: u64,
}

impl Shared {
    pub(super) fn names(self) -> Vec<String> {
        (0..self.count).map(|number| format!("shared-{number}")).collect()
    }
}

impl Tenant {
    pub(super) fn shared(self) -> Shared {
        match self {
            Self::Acme => Shared { count: 12, interval_s: 1 },
            Self::Xyz => Shared { count: 10, interval_s: 5 },
        }
    }

    /// Who is there to run them.
    pub(super) fn sharing(self) -> &'static [&'static str] {
        match self {
            Self::Acme => &[POLLER, PARTNER],
            Self::Xyz => &[POLLER],
        }
    }
}

impl World {
    /// What a person of the platform may ask.
    #[must_use]
    pub fn operator(&self) -> Operator<'_> {
        Operator { home: self.deployment.home() }
    }

    pub(super) fn sharer(&mut self, part: Part) -> anyhow::Result<&mut Child> {
        let name = part.to_string();
        let found = self.deployment.up.sharers.iter_mut().find(|sharer| sharer.name == name);
        Ok(&mut found.with_context(|| format!("{part} runs"))?.tended.child)
    }

    /// Takes from the partner the checks of its settings: they are those of the real poller, whose slots have a book of their own.
    pub(super) fn let_partner_only_share(&mut self) -> anyhow::Result<()> {
        let file = self.settings_file(Tenant::Acme, PARTNER)?;
        let text = std::fs::read_to_string(&file).context("read the partner's settings")?;
        let mut settings: toml::Table = toml::from_str(&text).context("read the partner's settings")?;
        settings.remove("checks").context("there are checks in the partner's settings")?;
        std::fs::write(&file, toml::to_string(&settings)?).context("write the partner's settings")?;
        let mut pollers = self.deployment.up.pollers.iter_mut();
        let (_, _, child) = pollers.find(|(_, name, _)| name.as_str() == PARTNER).context("the partner runs")?;
        child.kill()?;
        Ok(child.restart()?)
    }

    /// Adds the checks, once nobody else at the site could be given any.
    pub(super) async fn share_checks(&self) -> anyhow::Result<()> {
        for tenant in Tenant::ALL {
            // It was ended before it was known, or is missed after its lease.
            self.wait_for_states(tenant, &[LEDGER], &["lost", "never"]).await?;
            self.wait_until_ready(tenant).await?;
            let shared = tenant.shared();
            let file = self.deployment.home().join(format!("shared-{tenant}.yaml"));
            let checks = checks_file(&shared.names(), &[tenant.site()], self.target.address.port(), shared.interval_s);
            std::fs::write(&file, checks).context("write checks")?;
            let file = file.display().to_string();
            self.operator().expect(0, &["check", "apply", "--tenant", tenant.slug(), "-f", &file]).await?;
        }
        Ok(())
    }

    async fn wait_for_states(&self, tenant: Tenant, names: &[&str], states: &[&str]) -> anyhow::Result<()> {
        let waited = eventually("pollers in this state", BELIEVED_LIMIT, || async {
            let asked = self.operator().expect(0, &["poller", "status", "--tenant", tenant.slug()]).await;
            let (rows, _) = asked.map_err(|error| format!("{error:#}"))?;
            let is_so = |name: &&str| {
                rows.iter().any(|row| row["name"] == **name && states.iter().any(|state| row["state"] == **state))
            };
            let shown = || rows.iter().map(|row| format!("{} {} {}", row["name"], row["state"], row["because"]));
            match names.iter().all(is_so) {
                true => Ok(()),
                false => Err(format!("{names:?} of {tenant} not {states:?}: {:?}", shown().collect::<Vec<_>>())),
            }
        });
        waited.await.context("the registry")
    }

    /// Everybody who runs checks is there, as the registry sees it, and has applied what it is given.
    pub(super) async fn wait_until_ready(&self, tenant: Tenant) -> anyhow::Result<()> {
        self.wait_for_states(tenant, tenant.sharing(), &["ready"]).await
    }

    /// Each check, of settings and shared out, has a result that was measured after this call.
    pub(super) async fn wait_for_results(&self, tenant: Tenant) -> anyhow::Result<()> {
        let (since_ms, checks) = (now_ms(), self.own(tenant)?.checks_at_site());
        let sql = "select unnest($3::text[]) except
                   select s.check_name from everywhere.check_state s join platform.tenant t using (tenant_id)
                   where t.slug = $1 and s.vantage = $2 and s.slot >= to_timestamp($4::float8 / 1000)";
        let waited = eventually("a new result of every check", LIMIT, || async {
            let query = sqlx::query_scalar(sql).bind(tenant.slug()).bind(tenant.site()).bind(&checks);
            let stale: Vec<String> =
                query.bind(since_ms as f64).fetch_all(&self.witness).await.map_err(|error| error.to_string())?;
            if stale.is_empty() { Ok(()) } else { Err(format!("none of {stale:?}")) }
        });
        waited.await.with_context(|| format!("{tenant} is not watched"))
    }

    /// The registry and dispatch have not ended by themselves.
    pub(super) fn check_sharers_running(&mut self) -> anyhow::Result<()> {
        for sharer in &mut self.deployment.up.sharers {
            sharer.tended.child.check_running().with_context(|| sharer.name.clone())?;
        }
        Ok(())
    }
}
