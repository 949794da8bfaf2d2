//! Whoever is put out while connected is disconnected and stays out; whoever is not concerned stays.

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::AuthorityName;
use bulkhead_bus::payload::Decision;
use bulkhead_identity::GateBody;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{Identity, RawClient, RawLeaf, scrape};

use crate::entering::{leaf, person, poller, soon_in};
use crate::hub::{ACME, GateHub, LIMIT, XYZ};

/// Everybody of acme-corp, and somebody of xyz-inc.
struct Crowd {
    ann: RawClient,
    vic: RawClient,
    p1: RawClient,
    rome: RawClient,
    leaf: RawLeaf,
    other: RawClient,
}

/// The certificates that they come with.
struct Shown {
    ann: Identity,
    vic: Identity,
    p1: Identity,
    rome: Identity,
    leaf: Identity,
    other: Identity,
}

impl Shown {
    fn issue(hub: &GateHub) -> anyhow::Result<Self> {
        Ok(Self {
            ann: hub.certificate(&person(ACME, "ann"))?,
            vic: hub.certificate(&person(ACME, "vic"))?,
            p1: hub.certificate(&poller(ACME, "oslo", "p1"))?,
            rome: hub.certificate(&poller(ACME, "rome", "p1"))?,
            leaf: hub.certificate(&leaf(ACME, "oslo"))?,
            other: hub.certificate(&person(XYZ, "ann"))?,
        })
    }
}

impl Crowd {
    /// Nobody is closed by a sweep that happens to come by: that would hide that nothing else does.
    async fn gather(hub: &GateHub, shown: &Shown) -> anyhow::Result<Self> {
        hub.until_swept().await?;
        let link = eventually("a leaf that is let in", LIMIT, || async {
            hub.link(&shown.leaf, "leaf-acme-corp-oslo").await.map_err(|error| format!("{error:?}"))
        });
        Ok(Self {
            ann: soon_in(hub, &shown.ann).await?,
            vic: soon_in(hub, &shown.vic).await?,
            p1: soon_in(hub, &shown.p1).await?,
            rome: soon_in(hub, &shown.rome).await?,
            leaf: link.await?,
            other: soon_in(hub, &shown.other).await?,
        })
    }

    /// Who is closed, by name.
    fn closed(&self) -> Vec<&'static str> {
        let all = [
            ("ann", self.ann.is_closed()),
            ("vic", self.vic.is_closed()),
            ("p1", self.p1.is_closed()),
            ("rome", self.rome.is_closed()),
            ("leaf", self.leaf.is_closed()),
            ("other", self.other.is_closed()),
        ];
        all.into_iter().filter(|(_, is_closed)| *is_closed).map(|(name, _)| name).collect()
    }

    /// Waits until exactly these are closed, and whoever is left was looked at after it.
    async fn expect_closed(&self, hub: &GateHub, names: &[&str]) -> anyhow::Result<()> {
        let closed = eventually("the end of those who are put out", LIMIT, || {
            let closed = self.closed();
            let is_done = names.iter().all(|name| closed.contains(name));
            std::future::ready(if is_done { Ok(()) } else { Err(format!("{closed:?}")) })
        });
        closed.await.with_context(|| format!("{names:?}"))?;
        hub.more_decided(0, |one| one.outcome == "withdrawn").await?;
        ensure!(self.closed() == names, "{:?} are closed, and not {names:?} alone", self.closed());
        Ok(())
    }
}

fn withdrawn(one: &Decision) -> bool {
    one.outcome == "withdrawn"
}

/// `change` puts out exactly `names`, and `reason` is recorded.
async fn puts_out(change: impl Fn(&mut GateBody), names: &[&str], reason: &str) -> anyhow::Result<()> {
    let hub = GateHub::start(2).await?;
    let shown = Shown::issue(&hub)?;
    let crowd = Crowd::gather(&hub, &shown).await?;
    // Control: another record that takes nothing away closes nobody.
    hub.put_record(ACME, |body| drop(body.people.insert("bob".to_owned(), "viewer".to_owned()))).await?;
    let bob = soon_in(&hub, &hub.certificate(&person(ACME, "bob"))?).await?;
    ensure!(crowd.closed().is_empty(), "{:?}", crowd.closed());
    hub.put_record(ACME, |body| {
        body.people.insert("bob".to_owned(), "viewer".to_owned());
        change(body);
    })
    .await?;
    crowd.expect_closed(&hub, names).await?;
    let found = hub.decided("the withdrawal", |one| withdrawn(one) && one.detail.contains(reason)).await?;
    ensure!(found.expected.as_deref() == Some(ACME) && found.detail.contains("it is closed"), "{found:?}");
    let identities =
        [("ann", &shown.ann), ("vic", &shown.vic), ("p1", &shown.p1), ("rome", &shown.rome), ("other", &shown.other)];
    for (name, identity) in identities {
        let is_in = hub.connect(identity).await.is_ok();
        // In another role somebody may come back.
        let is_out = names.contains(&name) && !reason.contains("another role");
        ensure!(is_in != is_out, "{name} {} after it", if is_in { "is in" } else { "is out" });
    }
    drop(bob);
    Ok(())
}

#[tokio::test]
async fn a_person_who_is_put_out_or_gets_another_role_is_closed() -> anyhow::Result<()> {
    puts_out(|body| drop(body.people.remove("ann")), &["ann"], "is not let in any more").await?;
    let other_role = |body: &mut GateBody| drop(body.people.insert("ann".to_owned(), "viewer".to_owned()));
    puts_out(other_role, &["ann"], "in another role").await
}

#[tokio::test]
async fn a_site_that_is_removed_or_may_come_from_elsewhere_only_is_closed() -> anyhow::Result<()> {
    puts_out(|body| drop(body.sites.remove("oslo")), &["p1", "leaf"], "its site is not the tenant's").await?;
    let narrowed = |body: &mut GateBody| {
        body.sites.entry("rome".to_owned()).or_default().sources = vec!["10.1.0.0/16".parse().expect("a network")];
    };
    puts_out(narrowed, &["rome"], "networks of its site").await
}

#[tokio::test]
async fn a_certificate_that_is_revoked_and_an_account_that_is_closed_end_who_is_in() -> anyhow::Result<()> {
    puts_out(|body| body.is_open = false, &["ann", "vic", "p1", "rome", "leaf"], "the account is closed").await?;
    let hub = GateHub::start(2).await?;
    let shown = Shown::issue(&hub)?;
    let crowd = Crowd::gather(&hub, &shown).await?;
    let issued = hub.platform.authority.list_issued(&AuthorityName::Tenant(ACME.parse()?))?;
    let p1 =
        issued.into_iter().find(|one| one.identity.ends_with("/site/oslo/poller/p1")).context("p1's certificate")?;
    hub.put_record(ACME, |body| body.revoked = [p1.fingerprint.clone()].into()).await?;
    crowd.expect_closed(&hub, &["p1"]).await?;
    let again = hub.certificate(&poller(ACME, "oslo", "p1"))?;
    soon_in(&hub, &again).await.context("another certificate of the same poller")?;
    ensure!(hub.connect(&shown.p1).await.is_err(), "it is revoked");
    Ok(())
}

/// Whichever replica is asked.
async fn stays_out(hub: &GateHub, out: &Identity, inside: &Identity) -> anyhow::Result<()> {
    const IN_A_ROW: usize = 16;
    soon_in(hub, inside).await?;
    let settled = eventually("refusals only", LIMIT, || async {
        for _ in 0..IN_A_ROW {
            if hub.connect(out).await.is_ok() {
                return Err("whoever was put out is let in");
            }
        }
        Ok(())
    });
    settled.await?;
    hub.connect(inside).await.context("control: somebody else").map(drop)
}

/// Neither what a bucket does not keep is lost, nor the end of a replica a way back in.
#[tokio::test]
async fn who_is_put_out_while_the_bucket_takes_nothing_is_closed_and_stays_out() -> anyhow::Result<()> {
    let mut hub = GateHub::start(2).await?;
    let shown = Shown::issue(&hub)?;
    let crowd = Crowd::gather(&hub, &shown).await?;
    hub.drop_bucket().await?;
    // One replica is away and hears nothing of it.
    hub.gatekeepers.remove(1).kill()?;
    let port = hub.health_ports[0];
    let unwatched = eventually("a bucket that nobody watches", LIMIT, || async move {
        let (_, page) = scrape::get(port, "/metrics").await.map_err(|error| format!("{error:#}"))?;
        if page.contains("gatekeeper_bucket_watched 0") { Ok(()) } else { Err("it is watched".to_owned()) }
    });
    unwatched.await?;
    let kept = hub.put_record(ACME, |body| drop(body.people.remove("ann"))).await;
    ensure!(kept.is_err(), "there is a bucket");
    crowd.expect_closed(&hub, &["ann"]).await?;
    ensure!(hub.connect(&shown.ann).await.is_err(), "she is in again");
    hub.connect(&shown.vic).await.context("control: somebody else of the tenant")?;
    // It is back, and hears of it from the other one.
    hub.start_gatekeeper(2).await?;
    stays_out(&hub, &shown.ann, &shown.vic).await?;
    for gatekeeper in &mut hub.gatekeepers {
        gatekeeper.kill()?;
    }
    hub.gatekeepers.clear();
    hub.start_gatekeeper(2).await?;
    stays_out(&hub, &shown.ann, &shown.vic).await.context("a replica that starts")?;
    Ok(())
}
