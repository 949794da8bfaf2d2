//! What certificates do not decide about is looked at: SYS and AUTH, which credentials open, and whoever got in by another way.

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::ClientIdentity;
use bulkhead_bus::Role;
use bulkhead_runtime::eventually;

use crate::entering::{leaf, poller, soon_in};
use crate::hub::{ACME, GateHub, LIMIT, Weakness, XYZ};

#[tokio::test]
async fn the_platforms_own_credentials_with_a_tenants_certificate_are_thrown_out() -> anyhow::Result<()> {
    let hub = GateHub::start(2).await?;
    let tenants = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
    for (account, role) in [("sys", Role::SystemOperator), ("auth", Role::Gatekeeper)] {
        let creds = hub.credentials(account, role, "gatekeeper-9")?;
        // The server lets it in, and may have closed it again before it has said so.
        if let Ok(client) = hub.connect(&tenants.clone().with_creds(creds.clone())).await {
            client.wait_closed(LIMIT).await?;
        }
        let found = hub.decided("what the detective found", |one| {
            one.outcome == "foreign_certificate"
                && one.account.as_deref() == Some(hub.key_of_platform(account).as_str())
        });
        let found = found.await?;
        assert!(found.actual.as_ref().is_some_and(|subject| subject.contains("p1.oslo.xyz-inc")), "{found:?}");
        // Control: with a certificate of the platform it stays.
        let own = hub.certificate(&ClientIdentity::Service { service: "gatekeeper" })?.with_creds(creds);
        let client = hub.connect(&own).await?;
        // Whoever came later was looked at, and so was this one.
        let is_foreign = |one: &bulkhead_bus::payload::Decision| one.outcome == "foreign_certificate";
        let before = hub.decisions().await?.iter().filter(|one| is_foreign(one)).count();
        let creds = hub.credentials(account, role, "gatekeeper-8")?;
        let later = hub.certificate(&poller(XYZ, "rome", "p8"))?.with_creds(creds);
        // Kept, because whoever has left is not found any more.
        let later = hub.connect(&later).await;
        hub.more_decided(before, is_foreign).await?;
        drop(later);
        client.flush().await?;
        assert!(!client.is_closed(), "{account}");
    }
    Ok(())
}

/// Whoever holds the key has attacked: the certificate opens nothing any more, and its owner comes in by another one.
#[tokio::test]
async fn a_certificate_that_is_found_where_it_does_not_belong_opens_nothing_any_more() -> anyhow::Result<()> {
    let mut hub = GateHub::start(2).await?;
    // A sweep that happens to come by would hide that nothing else looks.
    hub.until_swept().await?;
    let stolen = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
    let inside = soon_in(&hub, &stolen).await?;
    let (own, neighbour) =
        (hub.certificate(&poller(XYZ, "oslo", "p1"))?, hub.certificate(&poller(ACME, "oslo", "p1"))?);
    let beside = soon_in(&hub, &own).await?;
    // One replica is away and hears nothing of it.
    hub.gatekeepers.remove(1).kill()?;
    let creds = hub.credentials("sys", Role::SystemOperator, "somebody")?;
    let attack = hub.connect(&stolen.clone().with_creds(creds)).await;
    inside.wait_closed(LIMIT).await.context("whoever is in by it")?;
    drop(attack);
    hub.decided("what is said of it", |one| one.detail.contains("let in nowhere for a day")).await?;
    // It is back, and hears of it from the other one; both remember.
    hub.start_gatekeeper(2).await?;
    let settled = eventually("refusals only", LIMIT, || async {
        for _ in 0..16 {
            if hub.connect(&stolen).await.is_ok() {
                return Err("it opens its own account");
            }
        }
        Ok(())
    });
    settled.await?;
    for _ in 0..2 {
        for _ in 0..8 {
            ensure!(hub.connect(&stolen).await.is_err(), "it opens its own account");
            hub.connect(&own).await.context("another certificate of the same poller")?;
            hub.connect(&neighbour).await.context("another tenant")?;
        }
        for gatekeeper in &mut hub.gatekeepers {
            gatekeeper.kill()?;
        }
        hub.gatekeepers.clear();
        for number in [1, 2] {
            hub.start_gatekeeper(number).await?;
        }
        soon_in(&hub, &own).await?;
    }
    let refused = hub.decided("a refusal", |one| one.outcome == "barred" && one.account.is_none()).await?;
    ensure!(refused.expected.as_deref() == Some(XYZ), "{refused:?}");
    beside.flush().await?;
    ensure!(!beside.is_closed(), "somebody else was closed");
    Ok(())
}

#[tokio::test]
async fn whoever_gets_in_beside_the_gatekeeper_is_thrown_out_client_or_leaf() -> anyhow::Result<()> {
    let hub = GateHub::start_weak(1, Weakness { unpinned: true }).await?;
    let plain = hub.certificate(&poller(ACME, "oslo", "p3"))?;
    let pair = plain.certificate.clone().context("a certificate")?;
    let text =
        [&pair.cert_file, &plain.ca_file].map(std::fs::read_to_string).into_iter().collect::<Result<String, _>>()?;
    let file = hub.path().join("besides.crt");
    std::fs::write(&file, text)?;
    let besides = hub.connect(&plain.with_certificate(file, pair.key_file)).await.context("with one besides")?;
    let creds = hub.credentials(ACME, Role::Poller, "p1")?;
    let client = hub.connect(&hub.certificate(&poller(XYZ, "oslo", "p1"))?.with_creds(creds.clone())).await;
    if let Ok(client) = client {
        client.wait_closed(LIMIT).await?;
    }
    let found = hub.decided("a foreign certificate", |one| one.outcome == "foreign_certificate").await?;
    assert_eq!(found.expected.as_deref(), Some(ACME));
    // With its own certificate it is no stranger, but no gatekeeper has let it in.
    if let Ok(client) = hub.connect(&hub.certificate(&poller(ACME, "oslo", "p1"))?.with_creds(creds)).await {
        client.wait_closed(LIMIT).await?;
    }
    hub.decided("a foreign issuer", |one| one.outcome == "foreign_issuer").await?;
    let creds = hub.credentials(ACME, Role::Leaf, "leaf")?;
    if let Ok(link) = hub.link(&hub.certificate(&leaf(XYZ, "oslo"))?.with_creds(creds), "leaf-xyz-inc-oslo").await {
        link.wait_closed(LIMIT).await?;
    }
    let is_leaf = |one: &bulkhead_bus::payload::Decision| {
        one.outcome == "foreign_certificate" && one.connection.kind == "Leafnode"
    };
    hub.decided("a leaf with a foreign certificate", is_leaf).await?;
    // Control: whoever was let in stays, also one whose file has somebody's public certificate besides.
    besides.flush().await?;
    assert!(!besides.is_closed());
    let own = hub.connect(&hub.certificate(&poller(ACME, "oslo", "p2"))?).await?;
    own.flush().await?;
    assert!(!own.is_closed());
    Ok(())
}
