//! Two sites of one tenant with a poller of the same name, and another tenant: each hears what is for it.

use anyhow::Context;
use bulkhead_accounts::up::CORE;
use bulkhead_bus::Role;
use bulkhead_testkit::{Identity, LIMIT, RawClient, RawLeaf, TestDeployment};

use crate::watch::{ACME, TENANTS, Watch, XYZ, hostile_leaf, settle_client, settle_leaf, subjects_of};

const PLACES: [(&str, &str); 3] = [(ACME, "oslo"), (ACME, "bergen"), (XYZ, "lima")];

/// Wakes pollers, as poller-dispatch is to do.
async fn dispatcher(deployment: &TestDeployment) -> anyhow::Result<RawClient> {
    let folder = deployment.home().join("dispatch");
    bulkhead_accounts::files::make_folder(&folder)?;
    let issued = deployment.up.platform.issue_service(CORE, Role::DispatchPush, "poller-dispatch", &folder)?;
    let identity = Identity::trusting(issued.tls.ca_file)
        .with_certificate(issued.tls.cert_file, issued.tls.key_file)
        .with_field("name", Role::DispatchPush.name());
    RawClient::connect(&deployment.hub(), &identity).await.context("connect as dispatcher")
}

/// A leaf at each place that asks for its own wake-ups, for everybody's, and for live streams.
async fn curious_leaves(deployment: &TestDeployment) -> anyhow::Result<Vec<(String, RawLeaf)>> {
    let mut leaves = Vec::new();
    for (tenant, site) in PLACES {
        let leaf = hostile_leaf(deployment, tenant, site).await?;
        let own = format!("down.{site}.>");
        for pattern in [own.as_str(), "down.>", "down.*.p1.*", "t.*.down.>", "live.>", "live.oslo.>"] {
            leaf.subscribe(pattern).await?;
        }
        settle_leaf(&leaf).await?;
        leaves.push((site.to_owned(), leaf));
    }
    Ok(leaves)
}

#[tokio::test]
async fn pollers_of_the_same_name_at_two_sites_hear_nothing_of_each_other() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&TENANTS, &[]).await?;
    let (acme, xyz) = (deployment.key_of(ACME)?, deployment.key_of(XYZ)?);
    let dispatcher = dispatcher(&deployment).await?;
    let leaves = curious_leaves(&deployment).await?;
    let intake = Watch::place(&deployment, "intake-1").await?;

    // Live first: when a leaf has its wake-up, live messages that it could hear would have come before.
    for (site, leaf) in &leaves {
        leaf.lmsg(&format!("live.{site}.p1.results"), None, format!("live of {site}").as_bytes()).await?;
        settle_leaf(leaf).await?;
    }
    for (key, site) in [(&acme, "oslo"), (&acme, "bergen"), (&xyz, "lima")] {
        let (subject, body) = (format!("t.{key}.live.{site}.p1.results"), format!("live of {site}"));
        intake.tap.wait_for(LIMIT, |message| message.subject == subject && message.body == body.as_bytes()).await?;
    }
    for (key, site) in [(&acme, "oslo"), (&acme, "bergen"), (&xyz, "lima"), (&xyz, "oslo")] {
        let subject = format!("t.{key}.down.{site}.p1.assign");
        dispatcher.publish(&subject, None, None, format!("wake {site}").as_bytes()).await?;
    }
    for (key, site) in [(&acme, "oslo"), (&acme, "bergen"), (&xyz, "lima")] {
        dispatcher.publish(&format!("t.{key}.down.{site}.p1.last"), None, None, b"last").await?;
    }
    settle_client(&dispatcher).await?;
    assert_eq!(dispatcher.errors(), Vec::<String>::new());
    for (site, leaf) in &leaves {
        let last = format!("down.{site}.p1.last");
        leaf.wait_for(LIMIT, |message| message.subject == last).await.with_context(|| last.clone())?;
        let woken = subjects_of(leaf.received(), |message| message.body == format!("wake {site}").as_bytes());
        assert!(
            !woken.is_empty() && woken.iter().all(|subject| *subject == format!("down.{site}.p1.assign")),
            "{woken:?}"
        );
        let own = format!("down.{site}.");
        let foreign = subjects_of(leaf.received(), |message| !message.subject.starts_with(&own));
        assert_eq!(foreign, Vec::<String>::new(), "at {site}");
    }
    // Who asks for the other site by name is thrown out.
    for (site, leaf) in leaves.iter().filter(|(site, _)| site != "oslo") {
        leaf.subscribe("down.oslo.p1.assign").await?;
        leaf.wait_closed(LIMIT).await.with_context(|| site.clone())?;
    }
    check_dispatcher_only_wakes(&dispatcher, &acme).await?;
    deployment.stop().await
}

/// Who may wake everybody may say nothing else in CORE.
async fn check_dispatcher_only_wakes(dispatcher: &RawClient, acme: &str) -> anyhow::Result<()> {
    let subjects = [format!("t.{acme}.up.oslo.fwd.results"), "_R_.x".to_owned(), "$JS.API.INFO".to_owned()];
    for subject in &subjects {
        dispatcher.publish(subject, None, None, b"").await?;
    }
    dispatcher.subscribe("t.*.up.>").await?;
    settle_client(dispatcher).await?;
    assert_eq!(dispatcher.errors().len(), subjects.len() + 1, "{:?}", dispatcher.errors());
    Ok(())
}
