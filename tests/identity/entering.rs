//! Whoever has a certificate enters its account and no other, and goes on entering when a gatekeeper or JetStream is away.

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::certificates::ClientIdentity;
use bulkhead_bus::gate::GateKey;
use bulkhead_bus::payload::ADMITTED;
use bulkhead_runtime::{Bus, BusSettings, LimitReached, TlsFiles, eventually};
use bulkhead_testkit::{ConnectError, Identity, RawClient};

use crate::hub::{ACME, GateHub, LIMIT, XYZ};

fn name<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

pub(crate) fn poller(tenant: &str, site: &str, poller: &str) -> ClientIdentity {
    ClientIdentity::Poller { tenant: name(tenant), site: name(site), poller: name(poller) }
}

pub(crate) fn leaf(tenant: &str, site: &str) -> ClientIdentity {
    ClientIdentity::Leaf { tenant: name(tenant), site: name(site) }
}

pub(crate) fn person(tenant: &str, user: &str) -> ClientIdentity {
    ClientIdentity::User { tenant: name(tenant), user: name(user) }
}

/// Tries until it is admitted: what was put in force a moment ago is known to the gatekeeper soon.
pub(crate) async fn soon_in(hub: &GateHub, identity: &Identity) -> Result<RawClient, LimitReached> {
    eventually("an admission", LIMIT, || async { hub.connect(identity).await.map_err(|error| format!("{error:?}")) })
        .await
}

/// Tries until it is refused.
pub(crate) async fn soon_out(hub: &GateHub, identity: &Identity) -> Result<(), LimitReached> {
    let out = eventually("a refusal", LIMIT, || async {
        match hub.connect(identity).await {
            Ok(_) => Err("it is admitted".to_owned()),
            Err(ConnectError::Refused(_)) => Ok(()),
            Err(other) => Err(format!("{other:?}")),
        }
    });
    out.await
}

#[tokio::test]
async fn a_certificate_alone_opens_its_own_account_for_clients_and_leaves() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    for tenant in [ACME, XYZ] {
        let own = hub.key_of(tenant).to_string();
        let p1 = hub.certificate(&poller(tenant, "oslo", "p1"))?;
        let client = hub.connect(&p1).await?;
        assert_eq!(hub.whereabouts(&client.info()).await?, (own.clone(), "p1".to_owned()));
        client.subscribe("down.oslo.p1.>").await?;
        client.subscribe("down.oslo.p2.>").await?;
        client.flush().await?;
        assert_eq!(client.errors().len(), 1, "it is p1 and nobody else: {:?}", client.errors());
        let link = hub.link(&hub.certificate(&leaf(tenant, "oslo"))?, &format!("leaf-{tenant}-oslo")).await?;
        let info = link.infos().first().cloned().context("an INFO")?;
        assert_eq!(hub.whereabouts(&info).await?, (own.clone(), "leaf".to_owned()));
        let ann = hub.connect(&hub.certificate(&person(tenant, "ann"))?).await?;
        assert_eq!(hub.whereabouts(&ann.info()).await?, (own, "ann".to_owned()));
    }
    let decided = hub.decided("xyz's leaf", |one| one.role.as_deref() == Some("leaf")).await?;
    assert_eq!((decided.outcome.as_str(), decided.actual.as_deref()), (ADMITTED, Some(XYZ)));
    assert_eq!(decided.account.as_deref(), Some(hub.key_of(XYZ).as_str()));
    assert!(decided.until.is_some_and(|until| until * 1_000 > decided.at_ms));
    Ok(())
}

#[tokio::test]
async fn records_open_and_close_an_account_and_never_go_back() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let (p1, other) = (hub.certificate(&poller(ACME, "oslo", "p1"))?, hub.certificate(&poller(XYZ, "oslo", "p1"))?);
    hub.connect(&p1).await?;
    let open = hub.record(ACME, |_| {})?;
    hub.put_record(ACME, |body| body.is_open = false).await?;
    soon_out(&hub, &p1).await?;
    // An old record, put back by whoever got hold of it.
    hub.put(&GateKey::Record(hub.key_of(ACME).clone()), open.into_bytes()).await?;
    hub.until_refused().await?;
    hub.connect(&other).await.context("only acme is closed")?;
    assert!(hub.connect(&p1).await.is_err(), "an old record is in force");
    hub.put_record(ACME, |body| drop(body.sites.remove("oslo"))).await?;
    let rome = hub.certificate(&poller(ACME, "rome", "p1"))?;
    soon_in(&hub, &rome).await?;
    assert!(hub.connect(&p1).await.is_err(), "its site is gone");
    hub.remove(&GateKey::Record(hub.key_of(ACME).clone())).await?;
    soon_out(&hub, &rome).await?;
    hub.put_record(ACME, |_| {}).await?;
    soon_in(&hub, &p1).await?;
    // Without keys nobody can be let in, and that is said.
    hub.remove(&GateKey::Keys(hub.key_of(ACME).clone())).await?;
    soon_out(&hub, &p1).await?;
    hub.decided("a missing key", |one| one.outcome == "no_key").await?;
    Ok(())
}

#[tokio::test]
async fn a_gatekeeper_that_dies_or_hangs_is_done_without_and_none_lets_nobody_in() -> anyhow::Result<()> {
    let mut hub = GateHub::start(2).await?;
    let p1 = hub.certificate(&poller(ACME, "oslo", "p1"))?;
    let held = hub.connect(&p1).await?;
    hub.gatekeepers[0].kill()?;
    soon_in(&hub, &p1).await?;
    // The second one hangs: nobody answers, and nobody is let in.
    hub.gatekeepers[1].pause()?;
    assert!(hub.connect(&p1).await.is_err(), "nobody decides, and it is in");
    held.flush().await?;
    assert!(!held.is_closed(), "who is in stays in");
    hub.gatekeepers[1].resume()?;
    // It may have been away for too short a time to take it for a hang; one that goes on answers.
    hub.start_gatekeeper(3).await?;
    soon_in(&hub, &p1).await?;
    Ok(())
}

#[tokio::test]
async fn a_replica_that_hung_for_seconds_ends_itself() -> anyhow::Result<()> {
    let mut hub = GateHub::start(1).await?;
    hub.gatekeepers[0].pause()?;
    // Longer than a replica may be silent.
    let mut ticks = tokio::time::interval(Duration::from_secs(9));
    ticks.tick().await;
    ticks.tick().await;
    hub.gatekeepers[0].resume()?;
    let gatekeeper = &mut hub.gatekeepers[0];
    let ended = eventually("its end", LIMIT, || {
        std::future::ready(if gatekeeper.check_running().is_err() { Ok(()) } else { Err("it runs") })
    });
    ended.await?;
    Ok(())
}

#[tokio::test]
async fn decisions_wait_on_disk_while_their_stream_takes_none_and_follow_then() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let p1 = hub.certificate(&poller(ACME, "oslo", "p1"))?;
    hub.connect(&p1).await?;
    hub.close_decisions(true).await?;
    let during = hub.certificate(&poller(ACME, "oslo", "p2"))?;
    hub.connect(&during).await.context("JetStream takes nothing, and whoever has a right to is in")?;
    let is_his = |one: &bulkhead_bus::payload::Decision| {
        one.identity.as_deref() == Some("spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p2")
    };
    assert!(!hub.decisions().await?.iter().any(is_his), "the stream took it");
    hub.close_decisions(false).await?;
    let found = hub.decided("the decision that waited", is_his).await?;
    assert_eq!(found.outcome, ADMITTED);
    Ok(())
}

#[tokio::test]
async fn a_start_without_the_bucket_goes_on_with_what_was_known() -> anyhow::Result<()> {
    let mut hub = GateHub::start(1).await?;
    let p1 = hub.certificate(&poller(ACME, "oslo", "p1"))?;
    hub.connect(&p1).await?;
    hub.put_record(XYZ, |body| body.is_open = false).await?;
    let other = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
    soon_out(&hub, &other).await?;
    hub.gatekeepers[0].kill()?;
    hub.gatekeepers.clear();
    hub.drop_bucket().await?;
    hub.start_gatekeeper(1).await?;
    soon_in(&hub, &p1).await?;
    assert!(hub.connect(&other).await.is_err(), "what was closed is closed");
    // It is made anew, and empty: what nobody has removed is still known, and what is said from now on counts.
    hub.make_bucket().await?;
    hub.put_record(XYZ, |_| {}).await?;
    soon_in(&hub, &other).await?;
    hub.connect(&p1).await.context("an empty bucket locked everybody out")?;
    Ok(())
}

/// People who come in the moment in which they are let in are in; whoever is not let in is told so, and not kept waiting.
#[tokio::test]
async fn a_refusal_of_the_moment_is_tried_again_and_one_that_stands_is_said() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let shown = hub.certificate(&person(ACME, "bob"))?;
    let pair = shown.certificate.context("he has one")?;
    let settings = BusSettings {
        urls: hub.platform.hub_urls.clone(),
        tls: TlsFiles { ca_file: shown.ca_file, cert_file: pair.cert_file, key_file: pair.key_file },
        creds_file: None,
        inbox_prefix: "_INBOX_bob".to_owned(),
    };
    let refused = Bus::connect_admitted(&settings, "bob", Duration::from_millis(300)).await;
    assert!(refused.is_err_and(|error| error.is_refused()), "nobody knows him");
    let is_his = |one: &bulkhead_bus::payload::Decision| one.outcome == "unknown_person";
    let before = hub.decisions().await?.iter().filter(|one| is_his(one)).count();
    let let_in = async {
        hub.more_decided(before, is_his).await?;
        hub.put_record(ACME, |body| drop(body.people.insert("bob".to_owned(), "viewer".to_owned()))).await
    };
    let (entered, told) = tokio::join!(Bus::connect_admitted(&settings, "bob", LIMIT), let_in);
    told?;
    entered.context("he was let in while it was tried").map(drop)
}
