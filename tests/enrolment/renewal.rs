//! A machine whose certificates end within seconds goes on without anybody's help, and one that does not renew them does not.

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::CertificateFiles;
use bulkhead_identity::Enrolee;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{Exposition, LIMIT};
use bulkhead_tests::machine::{Machine, neighbouring_ports};
use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};

use crate::device::{Ground, age};
use crate::story::{SITE, enroll, results_of, wait_for_more};

/// What a leaf says whose certificate the hub does not take.
const TURNED_AWAY: &str = "Leafnode connection closed: Read Error";

fn enrolee() -> anyhow::Result<Enrolee> {
    Ok(Enrolee::parse(&format!("acme-corp/{SITE}/p1"))?)
}

/// Puts certificates for the machine's keys in place that end at `end`, issued as long before as all are.
fn age_machine(ground: &Ground, machine: &Machine, end: OffsetDateTime) -> anyhow::Result<()> {
    let enrolee = enrolee()?;
    age(ground, &enrolee, end, |kind| {
        let path = machine.bundle.join(kind.path(&enrolee.poller));
        let key = KeyPair::from_pem(&std::fs::read_to_string(path.with_extension("key"))?)?;
        Ok((key, CertificateFiles { cert_file: path.with_extension("crt"), key_file: path.with_extension("key") }))
    })
}

async fn until(moment: OffsetDateTime) -> anyhow::Result<()> {
    let end_ms = moment.unix_timestamp() * 1_000 + 2_000;
    let reached = eventually("the end of the certificates", LIMIT, || async {
        let left = end_ms - now_ms();
        if left <= 0 { Ok(()) } else { Err(format!("{left} ms are left")) }
    });
    Ok(reached.await?)
}

async fn page(port: u16) -> anyhow::Result<Exposition> {
    Ok(Exposition::parse(&bulkhead_testkit::scrape::get(port, "/metrics").await?.1)?)
}

#[tokio::test]
async fn certificates_are_renewed_before_they_end_and_nothing_is_interrupted() -> anyhow::Result<()> {
    let ground = Ground::start().await?;
    let witness = ground.deployment.witness().await?;
    let machine = Machine::new("site")?;
    let (leaf_port, health) = (neighbouring_ports(1)?, neighbouring_ports(1)?);
    let (leaf, ports) = (leaf_port.to_string(), health.to_string());
    let add = ["poller", "add", &enrolee()?.to_string(), "--leaf-port", &leaf, "--health-port", &ports];
    let (added, _) = ground.operator().expect(0, &add).await?;
    let folder = machine.bundle.clone();
    let (code, _, error) = enroll(&machine, &folder, &[added[0]["token"].as_str().context("a token")?]).await?;
    ensure!(code == Some(0), "{error}");

    let end = OffsetDateTime::now_utc() + Duration::seconds(35);
    age_machine(&ground, &machine, end)?;
    // The next ones are signed by another intermediate, of which the running leaf has not heard.
    let trusted = || std::fs::read_to_string(folder.join("tls/tenant.crt"));
    let before = trusted()?;
    ground.operator().expect(0, &["ca", "rotate", "tenant/acme-corp"]).await?;
    let mut running = machine.start()?;
    wait_for_more(&witness, &machine, "p1").await?;
    let fresh = (OffsetDateTime::now_utc() + Duration::days(80)).unix_timestamp() as f64;
    let renewed = eventually("certificates renewed", LIMIT, || async {
        let page = page(health).await.map_err(|error| format!("{error:#}"))?;
        let value = |name: &str| page.value(name, &[]).unwrap_or_default();
        let seen = (value("poller_renewals_total"), value("poller_certificate_end_timestamp_seconds"));
        if seen.0 > 0.0 && seen.1 > fresh { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    renewed.await.with_context(|| machine.logs())?;
    ensure!(OffsetDateTime::now_utc() < end, "it was renewed after its end");
    ensure!(trusted()? != before, "control: nothing was rotated");

    // What was there before is worth nothing now. The hub's server comes back, so that the leaf has to show the new one.
    until(end).await?;
    wait_for_more(&witness, &machine, "p1").await?;
    let mut ground = ground;
    let hub = ground.deployment.up.hub_child(0).context("the hub")?;
    hub.kill()?;
    hub.restart()?;
    wait_for_more(&witness, &machine, "p1").await?;
    // So does the poller, which has gone on all the time, when its leaf comes back.
    running.restart(&machine, 0).await?;
    wait_for_more(&witness, &machine, "p1").await?;
    let page = page(health).await?;
    ensure!(page.value("poller_renewals_failed_total", &[]) == Some(0.0), "a renewal failed: {}", machine.logs());
    ensure!(page.value("poller_renewals_total", &[]) == Some(1.0), "it was renewed more than once");

    // The control: a machine that is not told where to renew.
    running.kill().await?;
    let settings = folder.join("pollers/p1/poller.toml");
    let text = std::fs::read_to_string(&settings)?;
    let told = text.split("[renewal]").next().context("settings")?.to_owned() + &checks_of(&text)?;
    std::fs::write(&settings, told)?;
    let end = OffsetDateTime::now_utc() + Duration::seconds(20);
    age_machine(&ground, &machine, end)?;
    let _running = machine.start()?;
    wait_for_more(&witness, &machine, "p1").await?;
    until(end).await?;
    let log = || std::fs::read_to_string(machine.log(0)).unwrap_or_default();
    let before = log().matches(TURNED_AWAY).count();
    let closed = eventually("the leaf turned away twice", LIMIT, || async {
        let times = log().matches(TURNED_AWAY).count() - before;
        if times >= 2 { Ok(()) } else { Err(format!("{times} times")) }
    });
    closed.await.with_context(|| machine.logs())?;
    let had = results_of(&witness, "p1").await?;
    for _ in 0..4 {
        ground.deployment.wait_for_results(&witness).await?;
    }
    ensure!(results_of(&witness, "p1").await? <= had + 4, "results came with a certificate that has ended");
    ground.deployment.stop().await
}

/// The checks of a settings file, which come last in it.
fn checks_of(text: &str) -> anyhow::Result<String> {
    let at = text.find("[[checks]]").context("checks")?;
    Ok(text[at..].to_owned())
}
