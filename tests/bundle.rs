//! A site's bundle on a machine that has nothing else of ours: unpacked, checked and started as its README says, its results
//! arrive; a tampered file is noticed, and the credentials of another tenant do not make it speak as this one.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bulkhead_accounts::bundle::{BundleOptions, SiteBundle, make_site_bundle};
use bulkhead_accounts::client::query;
use bulkhead_accounts::files::read_secret;
use bulkhead_accounts::profile::Profile;
use bulkhead_accounts::tenancy::{PlatformSettings, Tenancy};
use bulkhead_bus::CoreVerb;
use bulkhead_bus::payload::{LiveRow, Query};
use bulkhead_runtime::{Bus, eventually};
use bulkhead_store::Provisioning;
use bulkhead_testkit::{Exposition, LIMIT, TestDeployment, free_ports};
use bulkhead_tests::machine::{Machine, neighbouring_ports};
use bulkhead_tests::operator::Operator;
use sqlx::PgPool;

const TENANT: &str = "acme-corp";
const SITE: &str = "bergen";
const POLLERS: [&str; 2] = ["p1", "p2"];
/// Checks that every bundle has.
const CHECKS: i64 = 2;

fn make(deployment: &TestDeployment, options: &BundleOptions) -> anyhow::Result<SiteBundle> {
    let urls = PlatformSettings::read(&deployment.up.layout)?.leaf_urls;
    let pollers = POLLERS.iter().map(|poller| poller.parse()).collect::<Result<Vec<_>, _>>()?;
    let (tenant, site) = (TENANT.parse()?, SITE.parse()?);
    Ok(make_site_bundle(&deployment.up.platform, &urls, &tenant, &site, &pollers, options)?)
}

/// The site, as provisioning writes it down and tells it.
async fn register(deployment: &TestDeployment, bundle: &SiteBundle) -> anyhow::Result<()> {
    let url = read_secret(&deployment.up.layout.database_url_file())?;
    let database = Provisioning::connect(&url).await?;
    let tenant = database.tenant_by_slug(&TENANT.parse()?).await?.context("tenant")?;
    database.put_site(&tenant, &SITE.parse()?).await?;
    for poller in &bundle.manifest.pollers {
        database.put_poller(&tenant, &SITE.parse()?, &poller.poller, &poller.batch_key).await?;
    }
    let tenancy = Tenancy::open(deployment.home().to_owned())?;
    let mut record = tenancy.records.get(&TENANT.parse()?)?;
    record.sites.entry(SITE.parse()?).or_default();
    tenancy.records.write(&record)?;
    tenancy.tell_tenant(&tenancy.connect().await?, &record).await.map(drop).context("tell the gatekeepers")
}

/// How many slots the site has measured, and how many of them answered, under whichever tenant.
async fn slots(witness: &PgPool, tenant: &str) -> anyhow::Result<(i64, i64)> {
    let sql = "select count(*), count(*) filter (where r.outcome = 'ok' and r.attested)
               from everywhere.result r join platform.tenant t using (tenant_id) where t.slug = $1 and r.vantage = $2";
    sqlx::query_as(sql).bind(tenant).bind(SITE).fetch_one(witness).await.context("count results")
}

/// Waits until the site has results of every check beyond those that it had.
async fn wait_for_more(witness: &PgPool, machine: &Machine, had: i64) -> anyhow::Result<i64> {
    let waited = eventually("results of the bundle's site", LIMIT, || async {
        let (all, answered) = slots(witness, TENANT).await.map_err(|error| error.to_string())?;
        if answered >= had + CHECKS { Ok(answered) } else { Err(format!("{all} results, {answered} answered")) }
    });
    waited.await.with_context(|| machine.logs())
}

async fn checks_of(witness: &PgPool) -> anyhow::Result<Vec<String>> {
    let sql = "select distinct r.check_name from everywhere.result r join platform.tenant t using (tenant_id)
               where t.slug = $1 and r.vantage = $2 order by 1";
    sqlx::query_scalar(sql).bind(TENANT).bind(SITE).fetch_all(witness).await.context("read checks")
}

fn replace(path: &Path, with: &Path) -> anyhow::Result<Vec<u8>> {
    let own = std::fs::read(path)?;
    std::fs::write(path, std::fs::read(with)?)?;
    Ok(own)
}

#[tokio::test]
async fn a_bundle_starts_on_a_clean_machine_and_speaks_for_its_own_site_only() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"], &[]).await?;
    let witness = deployment.witness().await?;
    let options = BundleOptions {
        leaf_port: neighbouring_ports(1)?,
        health_port: neighbouring_ports(u16::try_from(POLLERS.len())?)?,
        ..BundleOptions::default()
    };
    let bundle = make(&deployment, &options)?;
    register(&deployment, &bundle).await?;
    let machine = Machine::unpack(&bundle)?;

    let sums = machine.check_sums()?;
    ensure!(sums.status.success() && sums.stdout.is_empty(), "{}", String::from_utf8_lossy(&sums.stderr));
    let valid = machine.command(&["nats-server".into(), "-t".into(), "-c".into(), "leaf.conf".into()])?.output()?;
    ensure!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stderr));
    let running = machine.start()?;
    let first = wait_for_more(&witness, &machine, 0).await?;
    assert_eq!(checks_of(&witness).await?, ["leaf", "this-machine"]);
    for (number, poller) in POLLERS.iter().enumerate() {
        let (status, body) =
            bulkhead_testkit::scrape::get(options.health_port + u16::try_from(number)?, "/readyz").await?;
        assert_eq!(status, 200, "{poller}: {body}");
    }

    // Killed and started again, with what it has stored, which now lies elsewhere behind a link as it does with systemd.
    running.kill().await?;
    let state = machine.logs.path().join("state");
    std::fs::rename(machine.bundle.join("state"), &state)?;
    std::os::unix::fs::symlink(&state, machine.bundle.join("state"))?;
    let running = machine.start()?;
    let second = wait_for_more(&witness, &machine, first).await?;

    // With the certificate of another tenant nothing of it arrives, neither as this tenant nor as that one.
    running.kill().await?;
    let tls = deployment.up.layout.site(&"xyz-inc".parse()?, &"lima".parse()?).join("tls");
    let mut own = Vec::new();
    for name in ["leaf.crt", "leaf.key"] {
        let path = machine.bundle.join("tls").join(name);
        own.push((path.clone(), replace(&path, &tls.join(name))?));
    }
    let sums = machine.check_sums()?;
    let said = String::from_utf8_lossy(&sums.stdout).into_owned();
    ensure!(!sums.status.success() && said.contains("leaf.crt"), "the edit was not noticed: {said}");
    // What was on its way when it was killed has arrived once the others have delivered.
    deployment.wait_for_results(&witness).await?;
    let before = slots(&witness, TENANT).await?;
    let running = machine.start()?;
    let refused = eventually("the leaf turned away", LIMIT, || async {
        let pages = [deployment.metrics("gatekeeper-1").await, deployment.metrics("gatekeeper-2").await];
        let count = |page: &anyhow::Result<Exposition>| {
            let refused = [("decision", "leaf_name")];
            page.as_ref().ok().and_then(|page| page.value("gatekeeper_decisions_total", &refused)).unwrap_or_default()
        };
        if pages.iter().map(count).sum::<f64>() > 0.0 { Ok(()) } else { Err("nobody was refused") }
    });
    refused.await.with_context(|| machine.logs())?;
    for _ in 0..2 {
        deployment.wait_for_results(&witness).await?;
    }
    assert_eq!(slots(&witness, TENANT).await?, before, "{}", machine.logs());
    assert_eq!(slots(&witness, "xyz-inc").await?, (0, 0));
    running.kill().await?;
    for (path, bytes) in own {
        std::fs::write(&path, bytes)?;
    }
    let running = machine.start()?;
    let third = wait_for_more(&witness, &machine, second.max(before.1)).await?;

    // A new bundle over the old one: the site stays who it is.
    running.kill().await?;
    let renewed = make(&deployment, &options)?;
    machine.unpack_over(&renewed)?;
    ensure!(machine.check_sums()?.status.success(), "the renewed bundle is not whole");
    let _running = machine.start()?;
    wait_for_more(&witness, &machine, third).await?;
    deployment.stop().await
}

/// What a site has sent and core has refused.
async fn refused(witness: &PgPool) -> anyhow::Result<i64> {
    let sql =
        "select count(*) from everywhere.dead_letter d join platform.tenant t using (tenant_id) where t.slug = $1";
    sqlx::query_scalar(sql).bind(TENANT).fetch_one(witness).await.context("count dead letters")
}

/// Whoever is refused is refused from now on, and the other tenant's and the other site's results go on.
async fn a_poller_is_revoked(deployment: &TestDeployment, witness: &PgPool, machine: &Machine) -> anyhow::Result<()> {
    let operator = Operator { home: deployment.home() };
    let path = format!("{TENANT}/{SITE}/p1");
    operator.expect(4, &["poller", "revoke", &format!("{TENANT}/{SITE}/p9"), "--dry-run"]).await?;
    let ops = Profile::read(&deployment.up.layout.profile("ops"))?;
    let bus = Bus::connect(&ops.bus_settings(), "watcher").await?;
    let live = async || -> anyhow::Result<usize> {
        let rows: Vec<LiveRow> = query(&bus, &ops.user, CoreVerb::ListLive, &Query::default()).await?;
        Ok(rows.iter().filter(|row| row.site.as_str() == SITE).count())
    };
    ensure!(live().await? > 0, "the live view shows nothing of the site");
    operator.expect(0, &["poller", "revoke", &path]).await?;
    let before = refused(witness).await?;
    let waited = eventually("what the revoked poller signs among the refused", LIMIT, || async {
        match refused(witness).await {
            Ok(now) if now > before + CHECKS => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    });
    waited.await.with_context(|| machine.logs())?;
    let accepted = slots(witness, TENANT).await?;
    for _ in 0..2 {
        deployment.wait_for_results(witness).await?;
    }
    ensure!(slots(witness, TENANT).await? == accepted, "a revoked poller's results are stored");
    ensure!(live().await? == 0, "a revoked poller is shown live");
    Ok(())
}

/// From the first command to the last: added, used, moved to other ports, revoked, removed.
#[tokio::test]
async fn a_site_lives_by_commands_alone() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"], &[]).await?;
    let witness = deployment.witness().await?;
    let operator = Operator { home: deployment.home() };
    let folder = tempfile::tempdir()?;
    let to = folder.path().display().to_string();
    let ports = free_ports::<2>()?.map(|port| port.to_string());
    let target = format!("tcp://127.0.0.1:{}", ports[0]);
    let path = format!("{TENANT}/{SITE}/p1");
    let add = ["poller", "add", &path, "--to", &to];
    let with = ["--leaf-port", &ports[0], "--health-port", &ports[1], "--target", &target];
    operator.expect(0, &[&add[..], &with[..], &["--dry-run"]].concat()).await?;
    operator.expect(4, &["poller", "show", &path]).await?;
    // Of a command that was killed.
    let killed = deployment.home().join(".bundle-killed");
    std::fs::create_dir(&killed)?;
    let (first, _) = operator.expect(0, &[&add[..], &with[..]].concat()).await?;
    ensure!(!killed.exists(), "the keys of a bundle that was killed are still there");
    let archive = |written: &[serde_json::Value]| written[0]["archive"].as_str().map(PathBuf::from).context("archive");
    let folder = first[0]["folder"].as_str().and_then(|folder| Path::new(folder).file_name()).context("folder")?;
    let machine = Machine::new(&folder.to_string_lossy())?;
    machine.unpack_archive(&archive(&first)?)?;
    let running = machine.start()?;
    let had = wait_for_more(&witness, &machine, 0).await?;
    let watched = eventually("a result of the target", LIMIT, || async {
        let checks = checks_of(&witness).await.map_err(|error| error.to_string())?;
        if checks.len() == 3 { Ok(()) } else { Err(format!("{checks:?}")) }
    });
    watched.await?;

    // Written anew without a word about ports and targets it has them still.
    let (again, _) = operator.expect(0, &add).await?;
    running.kill().await?;
    machine.unpack_archive(&archive(&again)?)?;
    let leaf = std::fs::read_to_string(machine.bundle.join("leaf.conf"))?;
    ensure!(leaf.contains(&format!("127.0.0.1:{}", ports[0])), "{leaf}");
    let running = machine.start()?;
    wait_for_more(&witness, &machine, had).await?;

    a_poller_is_revoked(&deployment, &witness, &machine).await?;

    // Removed and added again it is somebody else: the old key stays refused.
    let key = async || -> anyhow::Result<String> {
        let (shown, _) = operator.expect(0, &["poller", "show", &path]).await?;
        Ok(shown[0]["record"]["batch_key"].as_str().context("a key")?.to_owned())
    };
    let old = key().await?;
    operator.expect(4, &add).await?;
    operator.expect(0, &["poller", "remove", &path]).await?;
    operator.expect(0, &add).await?;
    ensure!(key().await? != old, "the key that was revoked is back");

    let site = format!("{TENANT}/{SITE}");
    operator.expect(4, &["site", "remove", &site]).await?;
    let (preview, _) = operator.expect(0, &["site", "remove", &site, "--with-pollers", "--dry-run"]).await?;
    let closing = preview[0]["closing"].as_array().context("closing")?;
    ensure!(closing.len() == 1 && closing[0]["kind"] == "leaf", "{preview:?}");
    operator.expect(0, &["site", "remove", &site, "--with-pollers"]).await?;
    let log = || std::fs::read_to_string(machine.log(0)).unwrap_or_default();
    let closed = eventually("a leaf that is not admitted", LIMIT, || async {
        if log().to_lowercase().contains("authorization violation") { Ok(()) } else { Err(log()) }
    });
    closed.await?;
    drop(running);
    deployment.stop().await
}
