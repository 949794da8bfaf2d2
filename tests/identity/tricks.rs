//! Certificates with every trick, and the limits that hold for whoever a certificate has let in.

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::{CertificateFiles, ClientIdentity};
use bulkhead_accounts::resolver::push;
use bulkhead_testkit::{ConnectError, Forger, Identity, client_params};
use rcgen::{CertificateParams, DnType, SanType};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::bypass::stolen;
use crate::entering::{leaf, person, poller, soon_in, soon_out};
use crate::hub::{ACME, GateHub, LIMIT, XYZ};

const OWN: (&str, &str) = ("p1.oslo.xyz-inc.serviceradar", "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1");
const OTHER: (&str, &str) =
    ("p1.oslo.acme-corp.serviceradar", "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1");

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("a DNS name"))
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("a URI"))
}

/// Its names as they should be, but for what `change` does.
fn forged(hub: &GateHub, by: &Forger, change: impl FnOnce(&mut CertificateParams)) -> anyhow::Result<Identity> {
    let mut params = client_params(OWN.0, OWN.1);
    change(&mut params);
    let pair = by.end(&params).write(by, &hub.path().join("forged"), &Uuid::new_v4().to_string())?;
    Ok(hub.nobody().with_certificate(pair.cert_file, pair.key_file))
}

type Trick = (&'static str, fn(&mut CertificateParams), Option<&'static str>);

/// What each is refused as; nothing where the server itself ends it, before anybody is asked.
const TRICKS: &[Trick] = &[
    ("another's name beside its own", |params| params.subject_alt_names.push(dns(OTHER.0)), Some("no_identity")),
    ("another's name before its own", |params| params.subject_alt_names.insert(0, dns(OTHER.0)), Some("no_identity")),
    ("another's URI beside its own", |params| params.subject_alt_names.push(uri(OTHER.1)), Some("no_identity")),
    ("another's URI before its own", |params| params.subject_alt_names.insert(0, uri(OTHER.1)), Some("no_identity")),
    (
        "URI before name, of another",
        |params| params.subject_alt_names = vec![uri(OTHER.1), dns(OTHER.0)],
        Some("no_identity"),
    ),
    (
        "another's common name",
        |params| params.distinguished_name.push(DnType::CommonName, OTHER.0),
        Some("no_identity"),
    ),
    ("no names but the common one", |params| params.subject_alt_names.clear(), Some("no_identity")),
    ("a name that looks alike", look_alike, Some("other_tenant")),
    (
        "an encoded name",
        |params| params.subject_alt_names[1] = uri(&OWN.1.replace("xyz", "%78yz")),
        Some("no_identity"),
    ),
    (
        "a name in capitals",
        |params| params.subject_alt_names[1] = uri(&OWN.1.replace("xyz", "XYZ")),
        Some("no_identity"),
    ),
    (
        "a path that climbs",
        |params| params.subject_alt_names[1] = uri(&format!("{}/../p2", OWN.1)),
        Some("no_identity"),
    ),
    ("expired", |params| params.not_after = OffsetDateTime::now_utc() - time::Duration::minutes(5), None),
    ("not good yet", |params| params.not_before = OffsetDateTime::now_utc() + time::Duration::hours(1), None),
];

fn look_alike(params: &mut CertificateParams) {
    let (name, shown) = (OWN.0.replace("xyz", "xy2"), OWN.1.replace("xyz", "xy2"));
    params.distinguished_name.push(DnType::CommonName, name.clone());
    params.subject_alt_names = vec![dns(&name), uri(&shown)];
}

/// An authority that the tenant's record names signs whatever it is asked to.
#[tokio::test]
async fn no_trick_with_names_or_times_opens_anything() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let loose = stolen(&hub.platform.authority.client_root_file())?.intermediate("loose", None);
    hub.put_record(XYZ, |body| body.authorities = [loose.key_hash().to_owned()].into()).await?;
    soon_in(&hub, &forged(&hub, &loose, |_| {})?).await.context("control: without a trick it is let in")?;
    for (trick, change, outcome) in TRICKS {
        let before = hub.decisions().await?.len();
        let refused = hub.connect(&forged(&hub, &loose, change)?).await;
        ensure!(refused.is_err(), "{trick}: it is in");
        let Some(outcome) = outcome else {
            ensure!(matches!(refused, Err(ConnectError::RefusedTls(_))), "{trick}: {:?}", refused.err());
            continue;
        };
        hub.more_decided(before, |_| true).await?;
        let decisions = hub.decisions().await?;
        let last = decisions.last().context("a decision")?;
        ensure!(last.outcome == *outcome, "{trick}: {last:?}");
    }
    hub.expect_recorded_in_time().await
}

/// The same words, another authority: whoever had the slug before is nobody.
#[tokio::test]
async fn an_old_certificate_of_a_slug_that_was_given_away_again_opens_nothing() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let old = hub.certificate(&poller(XYZ, "oslo", "p1"))?;
    let inside = soon_in(&hub, &old).await?;
    let next = stolen(&hub.platform.authority.client_root_file())?.intermediate("xyz-inc", None);
    hub.put_record(XYZ, |body| body.authorities = [next.key_hash().to_owned()].into()).await?;
    inside.wait_closed(LIMIT).await.context("whoever was in by it")?;
    soon_out(&hub, &old).await?;
    hub.decided("the old one", |one| one.outcome == "unknown_authority").await?;
    soon_in(&hub, &forged(&hub, &next, |_| {})?).await.context("control: the new owner's certificate").map(drop)
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let issue = |life: Duration| -> anyhow::Result<Identity> {
        let identity = ClientIdentity::Poller { tenant: ACME.parse()?, site: "oslo".parse()?, poller: "p1".parse()? };
        let files = CertificateFiles::named(&hub.path().join("issued"), &Uuid::new_v4().to_string());
        let now = OffsetDateTime::now_utc();
        hub.platform.authority.issue_client_for(&identity, &files, now, life.try_into()?)?;
        Ok(hub.nobody().with_certificate(files.cert_file, files.key_file))
    };
    let (short, long) = (issue(Duration::from_secs(5))?, issue(Duration::from_secs(3_600))?);
    let (ends, stays) = (soon_in(&hub, &short).await?, soon_in(&hub, &long).await?);
    ends.wait_closed(LIMIT).await.context("the certificate has ended")?;
    ensure!(ends.errors().iter().any(|error| error.contains("Expired")), "{:?}", ends.errors());
    ensure!(hub.connect(&short).await.is_err(), "it opens something still");
    stays.flush().await?;
    ensure!(!stays.is_closed(), "control: another certificate of the same poller");
    Ok(())
}

/// Limits of users are ignored after a callout; those of accounts are not (facts: auth-callout-measured, section 5).
#[tokio::test]
async fn an_accounts_limits_hold_for_whoever_a_certificate_let_in() -> anyhow::Result<()> {
    let hub = GateHub::start(1).await?;
    let (people, leaves) = (person(ACME, "ann"), [leaf(ACME, "oslo"), leaf(ACME, "rome")]);
    let (ann, oslo, rome) = (hub.certificate(&people)?, hub.certificate(&leaves[0])?, hub.certificate(&leaves[1])?);
    // Control: before, there is room.
    {
        let _all = [soon_in(&hub, &ann).await?, soon_in(&hub, &ann).await?, soon_in(&hub, &ann).await?];
        let _both = (hub.link(&oslo, "leaf-acme-corp-oslo").await?, hub.link(&rome, "leaf-acme-corp-rome").await?);
    }
    let (_, account) = hub.accounts.tenants.iter().find(|(record, _)| record.slug.as_str() == ACME).context("acme")?;
    let mut body = account.claims.nats.clone();
    (body.limits.conn, body.limits.leaf, body.limits.payload) = (2, 1, 1_024);
    let changed = hub.platform.operator.sign_body(ACME, body, OffsetDateTime::now_utc().unix_timestamp())?;
    push(&hub.system, &changed, 1).await?;
    let first = soon_in(&hub, &ann).await?;
    let _second = soon_in(&hub, &ann).await?;
    let third = hub.connect(&ann).await;
    ensure!(third.is_err(), "a third one is in");
    let _link = hub.link(&oslo, "leaf-acme-corp-oslo").await?;
    ensure!(hub.link(&rome, "leaf-acme-corp-rome").await.is_err(), "a second leaf is in");
    first.publish("up._user.ann.rpc.core.list", None, None, &[b'x'; 2_048]).await?;
    first.wait_closed(LIMIT).await.context("a payload over the limit")?;
    ensure!(first.errors().iter().any(|error| error.contains("Maximum Payload")), "{:?}", first.errors());
    Ok(())
}
