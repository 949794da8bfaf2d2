//! As many schemas of single tenants as a database holds: a migration that is killed in the middle goes on, and what a
//! connection keeps of them stays small.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::Context;
use bulkhead_bus::Tenant;
use bulkhead_store::{Connections, SCHEMAS_MOST, Service, Store};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_keys, tenant};
use bulkhead_testkit::deployment::program;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Schemas that are migrated when the command is killed.
const KILLED_AT: usize = 300;
/// Every tenant is on the list and has its place reserved, as a kill at the very beginning leaves them.
async fn reserve(superuser: &mut PgConnection, most: usize) -> anyhow::Result<Vec<Tenant>> {
    let named = |number: usize| Tenant { plan: "enterprise".to_owned(), ..tenant(&format!("t{number}")) };
    let tenants: Vec<Tenant> = (0..most).map(named).collect();
    let keys: Vec<String> = account_keys(most).iter().map(ToString::to_string).collect();
    let ids: Vec<uuid::Uuid> = tenants.iter().map(|tenant| tenant.id.as_uuid()).collect();
    let slugs: Vec<&str> = tenants.iter().map(|tenant| tenant.slug.as_str()).collect();
    let sql = "with new as (select * from unnest($1::uuid[], $2::text[], $3::text[]) n (id, key, slug)),
                    listed as (insert into platform.tenant (tenant_id, account_key, slug, plan, state, retention_days,
                                                            allows_unsigned, isolation)
                               select id, key, slug, 'enterprise', 'active', 30, false, 'schema' from new)
               insert into platform.tenant_schema (tenant_id, schema, version) select id, 'tenant_' || slug, 0 from new";
    sqlx::query(sql).bind(&ids).bind(&keys).bind(&slugs).execute(superuser).await.context("reserve schemas")?;
    Ok(tenants)
}

fn bulkhead(url_file: &Path, line: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(program("bulkhead")?);
    command.args(line).arg("--database-url-file").arg(url_file);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

async fn kill_in_the_middle(url_file: &Path) -> anyhow::Result<()> {
    let mut child = bulkhead(url_file, &["db", "migrate"])?.spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("its messages")?).lines();
    let is_far = |line: &str| {
        let done =
            line.split("schemas of tenants: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        done.is_some_and(|done| done >= KILLED_AT)
    };
    while let Some(line) = lines.next_line().await? {
        if is_far(&line) {
            return child.kill().await.context("kill it");
        }
    }
    anyhow::bail!("it ended before it was killed")
}

/// Memory of a backend that is its own, in kB.
fn memory_kb(pid: i32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("look at a backend")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    line.trim().trim_end_matches(" kB").parse().context("a number")
}

#[tokio::test]
async fn a_thousand_schemas_are_migrated_though_it_is_killed_and_visited_in_bounded_memory() -> anyhow::Result<()> {
    let database = TestDatabase::start().await?;
    let mut superuser = database.superuser().await?;
    let tenants = reserve(&mut superuser, usize::try_from(SCHEMAS_MOST)?).await?;
    let folder = tempfile::tempdir()?;
    let url_file = folder.path().join("provision.url");
    std::fs::write(&url_file, database.provision_url())?;
    std::fs::set_permissions(&url_file, std::fs::Permissions::from_mode(0o600))?;

    kill_in_the_middle(&url_file).await?;
    // A service does not start on what is half done, and says which schema it is.
    let refused = database.store().await.err().context("it started on old schemas")?;
    anyhow::ensure!(format!("{refused:#}").contains("run `bulkhead db migrate` first"), "{refused:#}");
    let status = bulkhead(&url_file, &["db", "status", "--json"])?.output().await?;
    anyhow::ensure!(status.status.code() == Some(2), "{status:?}");
    let done = "select count(*) from platform.tenant_schema where version > 0";
    let before: i64 = sqlx::query_scalar(done).fetch_one(&mut superuser).await?;
    anyhow::ensure!(
        before >= i64::try_from(KILLED_AT)? && before < SCHEMAS_MOST,
        "{before} were done when it was killed"
    );
    let again = bulkhead(&url_file, &["db", "migrate"])?.output().await?;
    anyhow::ensure!(again.status.success(), "{again:?}");
    let status = bulkhead(&url_file, &["db", "status", "--json"])?.output().await?;
    anyhow::ensure!(
        status.status.success() && status.stdout.split(|&byte| byte == b'\n').count() > 1_000,
        "{status:?}"
    );

    let store = Store::connect(&database.core_url(), Service::Core, Connections { shared: 1, own_schemas: 1 }).await?;
    let mut backends = std::collections::BTreeMap::new();
    for tenant in &tenants {
        let mut tx = store.begin(tenant).await?;
        sqlx::query("select * from check_state").fetch_all(tx.connection()).await?;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(tx.connection()).await?;
        backends.insert(pid, memory_kb(pid)?);
    }
    anyhow::ensure!(backends.len() >= 4, "it was never closed: {backends:?}");
    // Control: a connection that is never closed keeps something of every schema.
    let mut bare = database.bare_core().await?;
    for tenant in &tenants {
        let schema = tenant.slug.as_str();
        let visit = format!(
            "begin; select set_config('app.tenant_id', '{}', true), set_config('role', 'tenant_{schema}_core', true);
             select * from tenant_{schema}.check_state; commit",
            tenant.id.as_uuid()
        );
        sqlx::raw_sql(AssertSqlSafe(visit)).execute(&mut bare).await?;
    }
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut bare).await?;
    let kept = memory_kb(pid)?;
    let most = backends.values().max().context("no backend was seen")?;
    anyhow::ensure!(kept > 2 * most, "{kept} kB, and with closing {backends:?}");
    Ok(())
}
