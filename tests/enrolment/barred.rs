//! What gatekeepers bar for a day, the desk revokes for good: a certificate with the gatekeepers, and the key of a token with the
//! servers.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use bulkhead_accounts::certificates::{CertificateFiles, ClientIdentity};
use bulkhead_accounts::hub_files::HUB_CONFIG;
use bulkhead_accounts::operator::UserRequest;
use bulkhead_accounts::tenancy::Tenancy;
use bulkhead_bus::Role;
use bulkhead_bus::payload::Decision;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{ConnectError, Identity, LIMIT, RawClient};
use rcgen::KeyPair;
use serde_json::Value;
use time::{Duration, OffsetDateTime};

use crate::device::Ground;

const REVOKED: &str = "revoked_for_good";

/// Credentials by the account's own keys, as whoever has stolen those of the home makes them; and whose they are.
fn credentials(ground: &Ground, account: &str, role: Role) -> anyhow::Result<(PathBuf, String)> {
    let tenancy = Tenancy::open(ground.deployment.home().to_owned())?;
    let now = OffsetDateTime::now_utc();
    let expires = (now + Duration::hours(1)).unix_timestamp();
    let user = UserRequest { account, role, name: "thief", site: None, expires };
    let issued = tenancy.platform.operator.issue_user(&user, now.unix_timestamp())?;
    let path = ground.deployment.home().join(format!("stolen-{}.creds", issued.public));
    std::fs::write(&path, issued.text.as_bytes())?;
    Ok((path, issued.public))
}

async fn connect(ground: &Ground, identity: &Identity) -> Result<RawClient, ConnectError> {
    RawClient::connect(&ground.deployment.hub(), identity).await
}

/// Another certificate for the key of a person of acme-corp, as a renewal issues one.
fn again(ground: &Ground, user: &str, own: &Identity) -> anyhow::Result<Identity> {
    let tenancy = Tenancy::open(ground.deployment.home().to_owned())?;
    let _lock = tenancy.lock()?;
    let pair = own.certificate.clone().context("a certificate")?;
    let key = KeyPair::from_pem(&std::fs::read_to_string(&pair.key_file)?)?;
    let files = CertificateFiles::named(&ground.deployment.home().join("again"), user);
    let identity = ClientIdentity::User { tenant: "acme-corp".parse()?, user: user.parse()? };
    tenancy.platform.authority.certify_client(&identity, &key, &files, OffsetDateTime::now_utc())?;
    Ok(own.clone().with_certificate(files.cert_file, pair.key_file))
}

/// Waits until a gatekeeper has said so of somebody.
async fn said(ground: &Ground, outcome: &str) -> anyhow::Result<Decision> {
    let said = eventually(outcome, LIMIT, || {
        let all = ground.decisions.received();
        let all = all.iter().filter_map(|message| serde_json::from_slice::<Decision>(&message.body).ok());
        let all: Vec<Decision> = all.collect();
        let outcomes: Vec<_> = all.iter().map(|one| one.outcome.clone()).collect();
        std::future::ready(all.into_iter().rev().find(|one| one.outcome == outcome).ok_or(format!("{outcomes:?}")))
    });
    Ok(said.await?)
}

#[tokio::test]
async fn a_certificate_that_is_found_where_it_does_not_belong_is_revoked_for_good() -> anyhow::Result<()> {
    let ground = Ground::start().await?;
    let own = ground.deployment.person_identity("acme-corp-admin")?;
    let sibling = again(&ground, "admin", &own)?;
    for certificate in [&own, &sibling] {
        connect(&ground, certificate).await.context("before")?;
    }
    let (stolen, _) = credentials(&ground, "auth", Role::GateWriter)?;
    if let Ok(client) = connect(&ground, &own.clone().with_creds(stolen)).await {
        client.wait_closed(LIMIT).await?;
    }
    let revoked = ground.decided("what the desk did", |one| one.outcome == REVOKED).await?;
    ensure!(revoked.expected.as_deref() == Some("acme-corp"), "{revoked:?}");
    ensure!(revoked.identity.as_deref().is_some_and(|identity| identity.contains("admin")), "{revoked:?}");
    let rows = ground.deployment.rows(&["ca", "show", "tenant/acme-corp"]).await?;
    let of_it: Vec<_> = rows.iter().filter(|row| !row["revoked"].is_null()).collect();
    let is_lost = |row: &&Value| row["revoked"] == "key-compromise";
    ensure!(of_it.len() == 2 && of_it.iter().all(is_lost), "the key has two: {rows:?}");
    ensure!(connect(&ground, &sibling).await.is_err(), "another certificate of the same key is let in");
    // What is revoked is said before what is barred.
    let refused = eventually("refused because it is revoked", LIMIT, || async {
        if connect(&ground, &own).await.is_ok() {
            return Err("it is let in".to_owned());
        }
        said(&ground, "revoked").await.map_err(|error| error.to_string())
    });
    refused.await?;
    // Nobody else is put out, and whoever was robbed comes back by another one.
    connect(&ground, &ground.deployment.person_identity("xyz-inc-admin")?).await.context("another tenant")?;
    connect(&ground, &ground.deployment.person_identity("ops")?).await.context("the platform")?;
    ground.deployment.stop().await
}

#[tokio::test]
async fn the_key_of_a_token_that_opens_an_account_is_refused_by_every_server_from_then_on() -> anyhow::Result<()> {
    let mut ground = Ground::start().await?;
    let own = ground.deployment.person_identity("acme-corp-admin")?;
    let (creds, key) = credentials(&ground, "acme-corp", Role::Admin)?;
    let stolen = own.clone().with_creds(creds);
    ensure!(matches!(connect(&ground, &stolen).await, Err(ConnectError::Refused(_))), "tokens open an account");

    // Weakened on purpose: servers take tokens.
    let config = ground.deployment.up.layout.hub().join(HUB_CONFIG);
    let text = std::fs::read_to_string(&config)?;
    let weak: Vec<&str> = text.lines().filter(|line| !line.contains("resolver_pinned_accounts")).collect();
    ensure!(weak.len() + 1 == text.lines().count(), "{text}");
    std::fs::write(&config, weak.join("\n"))?;
    // The desk loses the hub, and comes back though its credentials are of no use any more.
    let writer = ground.deployment.home().join("provisioning/gate-writer.creds");
    ensure!(writer.exists(), "the desk comes by other credentials: {}", writer.display());
    let damaged = std::fs::read_to_string(&writer)?.replace("eyJ", "eyA");
    std::fs::write(&writer, damaged)?;
    ground.deployment.up.hub_child(0).context("the hub")?.restart()?;
    let listening = eventually("the hub's answer", LIMIT, || async {
        ground.deployment.wiretap("auth").await.map_err(|error| format!("{error:#}"))
    });
    ground.decisions = listening.await?;
    let inside = eventually("somebody in by a token", LIMIT, || async {
        connect(&ground, &stolen).await.map_err(|error| error.to_string())
    });
    inside.await?.wait_closed(LIMIT).await?;
    let found = said(&ground, "foreign_issuer").await?;
    ensure!(found.detail.contains("the key of its token is to be revoked"), "{found:?}");
    let revoked = ground.decided("what the desk did", |one| one.outcome == REVOKED).await?;
    ensure!(revoked.identity.as_deref() == Some(&key), "{revoked:?}");
    ensure!(revoked.expected.as_deref() == Some("acme-corp"), "{revoked:?}");
    for _ in 0..20 {
        let refused = connect(&ground, &stolen).await;
        ensure!(matches!(refused, Err(ConnectError::Refused(_))), "{:?}", refused.err());
    }
    // The control: another key of the same kind is in for a moment, so it is the revocation that refuses.
    let (creds, _) = credentials(&ground, "acme-corp", Role::Admin)?;
    connect(&ground, &own.clone().with_creds(creds)).await.context("another token")?.wait_closed(LIMIT).await?;
    // Whoever comes as one should is not touched.
    connect(&ground, &own).await.context("its own certificate")?;
    ground.deployment.stop().await
}
