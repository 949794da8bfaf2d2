//! Every way around the certificate that is known, each with a control where it works because the deployment is weaker.

use std::path::Path;

use anyhow::Context;
use bulkhead_accounts::certificates::ClientIdentity;
use bulkhead_bus::Role;
use bulkhead_testkit::{Forger, Identity, client_params};

use crate::entering::{leaf, person, poller, soon_in};
use crate::hub::{ACME, GateHub, Weakness, XYZ};

/// Good credentials of acme's people and sites, shown with a certificate of xyz.
async fn with_stolen_credentials(hub: &GateHub) -> anyhow::Result<Vec<(&'static str, bool)>> {
    let mut in_acme = Vec::new();
    let acme = hub.key_of(ACME).to_string();
    for (what, role, name) in [("poller", Role::Poller, "p1"), ("admin", Role::Admin, "ann")] {
        let creds = hub.credentials(ACME, role, name)?;
        let shown = hub.certificate(&poller(XYZ, "oslo", "p1"))?.with_creds(creds);
        let is_in = match hub.connect(&shown).await {
            Ok(client) => hub.whereabouts(&client.info()).await?.0 == acme,
            Err(_) => false,
        };
        in_acme.push((what, is_in));
    }
    let creds = hub.credentials(ACME, Role::Leaf, "leaf")?;
    let shown = hub.certificate(&leaf(XYZ, "oslo"))?.with_creds(creds);
    let is_in = match hub.link(&shown, "leaf-xyz-inc-oslo").await {
        Ok(link) => hub.whereabouts(&link.infos()[0]).await?.0 == acme,
        Err(_) => false,
    };
    in_acme.push(("leaf", is_in));
    Ok(in_acme)
}

#[tokio::test]
async fn stolen_credentials_are_worth_nothing() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let found = with_stolen_credentials(&hub).await?;
    assert_eq!(found, [("poller", false), ("admin", false), ("leaf", false)]);
    // With acme's own certificate they are worth nothing either: credentials open no account any more.
    let creds = hub.credentials(ACME, Role::Admin, "ann")?;
    let own = hub.certificate(&person(ACME, "ann"))?;
    assert!(hub.connect(&own.clone().with_creds(creds)).await.is_err());
    hub.connect(&own).await.context("control: the certificate alone")?;
    Ok(())
}

#[tokio::test]
async fn control_without_pinned_accounts_stolen_credentials_open_the_account() -> anyhow::Result<()> {
    // Without a gatekeeper, whose detective would end it.
    let hub = GateHub::start_weak(0, Weakness { unpinned: true }).await?;
    let found = with_stolen_credentials(&hub).await?;
    assert_eq!(found, [("poller", true), ("admin", true), ("leaf", true)]);
    Ok(())
}

#[tokio::test]
async fn what_a_connection_says_beside_its_certificate_changes_nothing() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let xyz = hub.key_of(XYZ).to_string();
    let p1 = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
    let says = |field: &str, value: &str| p1.clone().with_field(field, value);
    let gatekeeper = hub.gatekeeper_user(1)?;
    for shown in [
        says("user", ACME),
        says("user", hub.key_of(ACME).as_str()),
        says("nkey", &gatekeeper),
        says("user", &gatekeeper),
        says("nkey", hub.sent.key.as_str()),
        says("auth_token", "token"),
        says("name", "leaf-acme-corp-oslo"),
        says("jwt", "garbage"),
        says("jwt", ""),
    ] {
        let client = hub.connect(&shown).await.with_context(|| format!("{:?}", shown.connect_fields))?;
        assert_eq!(hub.whereabouts(&client.info()).await?.0, xyz, "{:?}", shown.connect_fields);
    }
    let chooses = says("account", hub.key_of(ACME).as_str());
    assert!(hub.connect(&chooses).await.is_err(), "a client chose its account");
    Ok(())
}

#[tokio::test]
async fn whoever_knew_the_user_that_nobody_is_gains_nothing() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let p1 = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
    let client = hub.connect(&p1.with_field("nkey", hub.nobody_key())).await?;
    let account = hub.whereabouts(&client.info()).await?.0;
    // Servers up to 2.15.0 take it for that user, who may do nothing; 2.15.1 has its certificate decided on all the same.
    assert!([hub.sent.key.as_str(), hub.key_of(XYZ).as_str()].contains(&account.as_str()), "{account}");
    let patterns = [">", "$SYS.REQ.USER.AUTH", "up.>", "_INBOX.>"];
    let subjects = ["$SYS.REQ.USER.AUTH", "up.rome.p1.x", "t.x.up.oslo.fwd.results", "probe.gatekeeper-1"];
    for (pattern, subject) in patterns.into_iter().zip(subjects) {
        client.subscribe(pattern).await?;
        client.publish(subject, Some("_INBOX.x"), None, b"x").await?;
    }
    client.flush().await?;
    assert_eq!(client.errors().len(), patterns.len() + subjects.len(), "{:?}", client.errors());
    assert!(client.received().is_empty());
    hub.connect(&hub.certificate(&poller(ACME, "oslo", "p1"))?).await.context("others enter meanwhile")?;
    Ok(())
}

#[tokio::test]
async fn a_certificate_is_good_for_its_kind_of_connection_and_its_site_only() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let identity = |identity: &ClientIdentity| hub.certificate(identity);
    let fwd = ClientIdentity::Forwarder { tenant: ACME.parse()?, site: "oslo".parse()? };
    for shown in [identity(&leaf(ACME, "oslo"))?, identity(&fwd)?] {
        assert!(hub.connect(&shown).await.is_err());
    }
    hub.decided("a leaf's certificate as a client", |one| one.outcome == "kind").await?;
    for shown in [identity(&poller(ACME, "oslo", "p1"))?, identity(&person(ACME, "ann"))?] {
        assert!(hub.link(&shown, "leaf-acme-corp-oslo").await.is_err());
    }
    let oslo = identity(&leaf(ACME, "oslo"))?;
    for name in ["leaf-acme-corp-rome", "leaf-xyz-inc-oslo", "hub-1", ""] {
        assert!(hub.link(&oslo, name).await.is_err(), "{name:?}");
    }
    hub.decided("a leaf under another site's name", |one| one.outcome == "leaf_name").await?;
    hub.link(&oslo, "leaf-acme-corp-oslo").await.context("control")?;
    for (who, outcome) in [(person(ACME, "eve"), "unknown_person"), (poller(ACME, "bern", "p1"), "unknown_site")] {
        assert!(hub.connect(&identity(&who)?).await.is_err());
        let decided = hub.decided(outcome, |one| one.outcome == outcome).await?;
        assert_eq!(decided.expected.as_deref(), Some(ACME));
    }
    hub.expect_recorded_in_time().await
}

/// An authority of the deployment; its key lies beside its certificate.
pub(crate) fn stolen(certificate: &Path) -> anyhow::Result<Forger> {
    Forger::stolen(certificate, &certificate.with_extension("key"))
}

fn forged(hub: &GateHub, by: &Forger, name: &str, uri: &str, file: &str) -> anyhow::Result<Identity> {
    let pair = by.end(&client_params(name, uri)).write(by, &hub.path().join("forged"), file)?;
    Ok(hub.nobody().with_certificate(pair.cert_file, pair.key_file))
}

const NAME: &str = "p1.oslo.acme-corp.serviceradar";
const URI: &str = "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1";

#[tokio::test]
async fn a_misissued_certificate_is_whose_authority_signed_it_or_nobodys() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let authority = &hub.platform.authority;
    // A root of the attacker's own, of the same name: TLS ends it.
    let foreign = Forger::root("client-root").intermediate("acme-corp", None);
    assert!(hub.connect(&forged(&hub, &foreign, NAME, URI, "foreign")?).await.is_err());
    // The real root has signed an intermediate that it should not have: without constraints, and of nobody.
    let root = stolen(&authority.client_root_file())?;
    let loose = root.intermediate("loose", None);
    assert!(hub.connect(&forged(&hub, &loose, NAME, URI, "loose")?).await.is_err());
    let decided = hub.decided("an unknown authority", |one| one.outcome == "unknown_authority").await?;
    assert_eq!((decided.actual.as_deref(), decided.expected), (Some(ACME), None));
    // It becomes xyz's: then it is good for xyz, and for nobody else.
    hub.put_record(XYZ, |body| body.authorities = [loose.key_hash().to_owned()].into()).await?;
    let own = ("p1.oslo.xyz-inc.serviceradar", "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1");
    let control = soon_in(&hub, &forged(&hub, &loose, own.0, own.1, "own")?).await?;
    assert_eq!(hub.whereabouts(&control.info()).await?.0, hub.key_of(XYZ).as_str());
    assert!(hub.connect(&forged(&hub, &loose, NAME, URI, "other")?).await.is_err());
    let decided = hub.decided("another tenant's name", |one| one.outcome == "other_tenant").await?;
    assert_eq!((decided.expected.as_deref(), decided.actual.as_deref()), (Some(XYZ), Some(ACME)));
    // Names that disagree, and names of nobody.
    for (name, uri, file) in [
        (own.0, URI, "uri"),
        (NAME, own.1, "dns"),
        (own.0, "spiffe://serviceradar/platform/service/core", "core"),
        (own.0, "spiffe://serviceradar/tenant/xyz-inc/site/*/poller/p1", "wild"),
        (own.0, "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1%00", "nul"),
        (own.0, "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/P1", "capital"),
        (own.0, "spiffe://example.net/tenant/xyz-inc/site/oslo/poller/p1", "domain"),
    ] {
        assert!(hub.connect(&forged(&hub, &loose, name, uri, file)?).await.is_err(), "{name} {uri}");
    }
    hub.decided("names of nobody", |one| one.outcome == "no_identity").await?;
    hub.expect_recorded_in_time().await
}

#[tokio::test]
async fn a_revoked_certificate_and_no_certificate_open_nothing() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let authority = &hub.platform.authority;
    let stolen = stolen(&authority.tenant_intermediate_file(&ACME.parse()?))?;
    let end = stolen.end(&client_params(NAME, URI));
    let pair = end.write(&stolen, &hub.path().join("forged"), "p1")?;
    let p1 = hub.nobody().with_certificate(pair.cert_file, pair.key_file);
    hub.connect(&p1).await.context("control: it is as good as any")?;
    hub.put_record(ACME, |body| body.revoked = [end.fingerprint.clone()].into()).await?;
    crate::entering::soon_out(&hub, &p1).await?;
    let decided = hub.decided("a revoked certificate", |one| one.outcome == "revoked").await?;
    assert_eq!(decided.actual.as_deref(), Some(ACME));
    assert!(hub.connect(&hub.nobody()).await.is_err());
    assert!(hub.link(&hub.nobody(), "leaf-acme-corp-oslo").await.is_err());
    hub.connect(&hub.certificate(&poller(ACME, "oslo", "p1"))?).await.context("control: another certificate of p1")?;
    hub.expect_recorded_in_time().await
}

#[tokio::test]
async fn a_hostile_leaf_gets_and_says_no_more_than_its_site() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let watcher = hub.connect(&hub.certificate(&poller(ACME, "rome", "p1"))?).await?;
    watcher.subscribe("down.rome.p1.>").await?;
    watcher.flush().await?;
    for subject in [
        "down.rome.p1.assign",
        "up.rome.fwd.results",
        "live.rome.p1.results",
        "$SYS.REQ.USER.AUTH",
        "$JS.API.STREAM.PURGE.RESULTS",
        "t.x.up.oslo.fwd.results",
    ] {
        let link = hub.link(&hub.certificate(&leaf(ACME, "oslo"))?, "leaf-acme-corp-oslo").await?;
        link.lmsg(subject, None, b"x").await?;
        link.wait_closed(crate::hub::LIMIT).await.with_context(|| format!("{subject} was let through"))?;
    }
    let link = hub.link(&hub.certificate(&leaf(ACME, "oslo"))?, "leaf-acme-corp-oslo").await?;
    link.lmsg("live.oslo.p1.results", None, b"x").await?;
    link.flush().await?;
    assert!(!link.is_closed(), "control: what is its own");
    assert!(watcher.received().is_empty());
    Ok(())
}
