//! A deployment with two tenants, of which one has two pollers at one site and one at another, and a listener to look at.

use std::collections::BTreeMap;

use bulkhead_bus::payload::{GapKind, GapRow};
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{LIMIT, TestDeployment};
use bulkhead_tests::operator::Operator;
use bulkhead_tests::shared_checks::{SETTLED_LIMIT, Target, ask_gaps, checks_file};
use serde_json::Value;
use sqlx::PgPool;

const HOUR_MS: i64 = 3_600_000;

pub(crate) const LINES: [&str; 2] = ["acme-corp enterprise oslo/p1 oslo/p2 bergen/p1", "xyz-inc free lima/p1"];

/// What an operator does with it.
pub(crate) struct World {
    pub(crate) deployment: TestDeployment,
    pub(crate) target: Target,
    pub(crate) witness: PgPool,
    pub(crate) began_ms: i64,
}

impl World {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::of(TestDeployment::start_with(&LINES, &[]).await?).await
    }

    pub(crate) async fn of(deployment: TestDeployment) -> anyhow::Result<Self> {
        let witness = deployment.witness().await?;
        let world = Self { deployment, target: Target::open().await?, witness, began_ms: now_ms() };
        world.wait_for_states("acme-corp", &[("oslo", "p1"), ("oslo", "p2"), ("bergen", "p1")], "ready").await?;
        Ok(world)
    }

    pub(crate) fn operator(&self) -> Operator<'_> {
        Operator { home: self.deployment.home() }
    }

    /// Rows of a command that is done.
    pub(crate) async fn rows(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        Ok(self.operator().expect(0, args).await?.0)
    }

    /// So many checks of one target, each every second at both sites of acme-corp.
    pub(crate) async fn add_checks(&self, count: usize, sites: &[&str]) -> anyhow::Result<()> {
        let names: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
        let file = self.deployment.home().join("checks.yaml");
        std::fs::write(&file, checks_file(&names, sites, self.target.address.port(), 1))?;
        let path = file.display().to_string();
        let rows = self.rows(&["check", "apply", "--tenant", "acme-corp", "-f", &path]).await?;
        anyhow::ensure!(rows.len() == count, "{rows:?}");
        Ok(())
    }

    pub(crate) async fn states(&self, tenant: &str) -> anyhow::Result<Vec<(String, String, String)>> {
        let rows = self.rows(&["poller", "status", "--tenant", tenant]).await?;
        let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        Ok(rows.iter().map(|row| (text(row, "site"), text(row, "name"), text(row, "state"))).collect())
    }

    pub(crate) async fn wait_for_states(
        &self,
        tenant: &str,
        members: &[(&str, &str)],
        state: &str,
    ) -> anyhow::Result<()> {
        eventually("members are in this state", LIMIT, || async {
            let found = self.states(tenant).await.map_err(|error| format!("{error:#}"))?;
            let is_so = |(site, name): &(&str, &str)| {
                found.iter().any(|(s, n, found)| (s.as_str(), n.as_str(), found.as_str()) == (*site, *name, state))
            };
            if members.iter().all(is_so) { Ok(()) } else { Err(format!("not all {state}: {found:?}")) }
        })
        .await
        .map_err(Into::into)
    }

    /// Who runs how many of acme-corp's checks at a site.
    pub(crate) async fn owners(&self, site: &str) -> anyhow::Result<BTreeMap<String, usize>> {
        let sql = "select coalesce(poller, 'nobody') from tenant_acme_corp.assignment
                   where vantage = $1 and ended_generation is null";
        let owners: Vec<String> = sqlx::query_scalar(sql).bind(site).fetch_all(&self.witness).await?;
        let mut counted = BTreeMap::new();
        for owner in owners {
            *counted.entry(owner).or_default() += 1;
        }
        Ok(counted)
    }

    /// When the newest slot of these checks is of a time after `since_ms`, at each of the sites.
    pub(crate) async fn wait_for_slots(&self, count: usize, sites: &[&str], since_ms: i64) -> anyhow::Result<()> {
        let wanted = i64::try_from(count * sites.len())?;
        eventually("every check has a new result", LIMIT, || async {
            let sql = "select count(*) from tenant_acme_corp.check_state
                       where check_name like 'c%' and vantage = any($1) and check_name ~ '^c[0-9]+$'
                         and slot >= 'epoch'::timestamptz + $2 * interval '1 millisecond'";
            let found = sqlx::query_scalar::<_, i64>(sql).bind(sites).bind(since_ms).fetch_one(&self.witness).await;
            match found.map_err(|error| error.to_string())? {
                found if found >= wanted => Ok(()),
                found => Err(format!("{found} of {wanted} checks have a slot after {since_ms}")),
            }
        })
        .await
        .map_err(Into::into)
    }

    /// Waits until no slot of acme-corp's checks is silent or pending that is older than `until_ms`, and returns what is missed.
    pub(crate) async fn settled_gaps(&self, until_ms: i64) -> anyhow::Result<Vec<GapRow>> {
        eventually("every slot is accounted for", SETTLED_LIMIT, || async {
            let asked = ask_gaps(self.operator(), "acme-corp", (until_ms - HOUR_MS, until_ms)).await;
            let asked = asked.map_err(|error| format!("{error:#}"))?;
            let is_open = |row: &&GapRow| row.kind == GapKind::Silent || row.kind == GapKind::Pending;
            match asked.iter().find(is_open) {
                None => Ok(asked),
                Some(row) => Err(format!("{row:?}")),
            }
        })
        .await
        .map_err(Into::into)
    }
}
