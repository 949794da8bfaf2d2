//! Who gets nothing, why, and how it is recorded. Each attack stands beside what is let through, or it would prove nothing.

use anyhow::{Context, ensure};
use bulkhead_accounts::enrolment::TokenSigner;
use bulkhead_accounts::render::DECISIONS_LOG;
use bulkhead_accounts::up::Layout;
use bulkhead_bus::payload::Decision;
use bulkhead_identity::{DeviceEnd, EnrolmentClaims, RenewalRequest, TrustDomain};
use bulkhead_runtime::LogSpec;
use futures_util::future::join_all;
use time::OffsetDateTime;

use crate::device::{Device, Ground, Said, ask, renew, send};

const POLLER: &str = "acme-corp/bergen/p1";

fn refused(said: &Said, code: &str) -> anyhow::Result<()> {
    ensure!(said.status == 403 && said.body["refused"] == code, "{code}: {said:?}");
    Ok(())
}

impl Ground {
    async fn recorded(&self, code: &str, expected: Option<&str>, actual: Option<&str>) -> anyhow::Result<()> {
        let decided = self.decided(code, |one| one.outcome == code && one.actual.as_deref() == actual).await?;
        ensure!(decided.expected.as_deref() == expected, "{decided:?}");
        ensure!(decided.connection.kind == "Enrolment" && decided.connection.host == "127.0.0.1", "{decided:?}");
        Ok(())
    }
}

/// What was given out is good for one device, and for none once it is withdrawn, expired or somebody else's.
async fn tokens(ground: &Ground) -> anyhow::Result<()> {
    let layout = Layout::new(ground.deployment.home().to_owned());
    let first = ground.token(POLLER).await?;
    let token = ground.token(POLLER).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let device = Device::new()?;
    refused(&ask(&desk, &device.request(&first, POLLER)?).await?, "token_withdrawn")?;
    ground.recorded("token_withdrawn", Some("acme-corp"), Some("acme-corp")).await?;

    let signer = TokenSigner::ensure(&layout, TrustDomain::default())?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let expired = signer.sign(&EnrolmentClaims { exp: now - 1, ..desk.clone() })?;
    refused(&ask(&desk, &device.request(&expired, POLLER)?).await?, "token_expired")?;
    ground.recorded("token_expired", None, None).await?;

    // Of another platform, in everything else the same.
    let elsewhere = tempfile::tempdir()?;
    let other = TokenSigner::ensure(&Layout::new(elsewhere.path().to_owned()), TrustDomain::default())?;
    refused(&ask(&desk, &device.request(&other.sign(&desk)?, POLLER)?).await?, "token_foreign")?;
    ground.recorded("token_foreign", None, None).await?;
    // Signed by us, and never given out.
    let unknown = signer.sign(&EnrolmentClaims { jti: uuid::Uuid::new_v4().to_string(), ..desk.clone() })?;
    refused(&ask(&desk, &device.request(&unknown, POLLER)?).await?, "token_withdrawn")?;
    // Given out, for another poller than it says now.
    let other_poller = signer.sign(&EnrolmentClaims { sub: "xyz-inc/lima/p1".to_owned(), ..desk.clone() })?;
    refused(&ask(&desk, &device.request(&other_poller, "xyz-inc/lima/p1")?).await?, "token_withdrawn")?;

    let said = ask(&desk, &device.request(&token, POLLER)?).await?;
    ensure!(said.status == 200 && said.body["poller"] == POLLER, "the control: {said:?}");
    let again = ask(&desk, &device.request(&token, POLLER)?).await?;
    ensure!(again.status == 200, "the same device, whose answer was lost: {again:?}");
    refused(&ask(&desk, &Device::new()?.request(&token, POLLER)?).await?, "token_used")?;
    ground.recorded("token_used", Some("acme-corp"), Some("acme-corp")).await?;
    ground
        .decided("that it was given", |one| one.outcome == "enrolled" && one.identity.as_deref() == Some(POLLER))
        .await?;
    // Each answer makes new certificates, so that there is an end of it.
    for _ in 2..10 {
        ensure!(ask(&desk, &device.request(&token, POLLER)?).await?.status == 200, "it was answered ten times already");
    }
    refused(&ask(&desk, &device.request(&token, POLLER)?).await?, "token_used")?;
    // What `up` runs on this machine has keys of its own.
    ground.operator().expect(4, &["poller", "add", "acme-corp/oslo/p1"]).await?;
    Ok(())
}

/// Whoever has used a token is out with it as well, once its poller is taken back.
async fn a_thief_does_not_come_back(ground: &Ground) -> anyhow::Result<()> {
    let (poller, operator) = ("acme-corp/bergen/p5", ground.operator());
    for end in [&["revoke", "remove"][..], &["remove"], &["add"]] {
        let token = ground.token(poller).await?;
        let desk = EnrolmentClaims::read(&token)?;
        let thief = Device::new()?;
        ensure!(ask(&desk, &thief.request(&token, poller)?).await?.status == 200, "the control");
        for verb in end {
            operator.expect(0, &["poller", verb, poller]).await?;
        }
        refused(&ask(&desk, &thief.request(&token, poller)?).await?, "token_withdrawn")?;
    }
    Ok(())
}

/// A key that was taken back stays so: whoever has stolen it would be let in with whomever enrols by it again.
async fn keys_that_were_revoked_stay_out(ground: &Ground) -> anyhow::Result<()> {
    let (poller, operator) = ("acme-corp/bergen/p8", ground.operator());
    let enrolled = async |device: &Device| -> anyhow::Result<(String, EnrolmentClaims, Said)> {
        let token = ground.token(poller).await?;
        let desk = EnrolmentClaims::read(&token)?;
        let said = ask(&desk, &device.request(&token, poller)?).await?;
        Ok((token, desk, said))
    };
    // Of a poller that was taken back, and of one whose certificate was.
    for end in [&["poller", "remove", poller][..], &["ca", "revoke"]] {
        let device = Device::new()?;
        ensure!(enrolled(&device).await?.2.status == 200, "it is not enrolled");
        let (token, desk, said) = enrolled(&device).await?;
        ensure!(said.status == 200, "the control: by another token with the same keys: {said:?}");
        device.age(ground, poller)?;
        let (shown, _) = operator.expect(0, &["poller", "show", poller]).await?;
        let serials = shown[0]["record"]["issued"]["serials"].as_array().context("serials")?;
        let serial = serials.last().and_then(serde_json::Value::as_str).context("a serial")?;
        let line = if end == ["ca", "revoke"] { [end, &[serial]].concat() } else { end.to_vec() };
        operator.expect(0, &line).await?;
        let again = ask(&desk, &device.request(&token, poller)?).await?;
        let code = if end == ["ca", "revoke"] { "csr_key_revoked" } else { "token_withdrawn" };
        refused(&again, code)?;
        refused(&enrolled(&device).await?.2, "csr_key_revoked")?;
        ground.recorded("csr_key_revoked", Some("acme-corp"), Some("acme-corp")).await?;
        refused(&renew(&desk, &device.renewal(poller)?).await?, "renewal_not_current")?;
    }
    ensure!(enrolled(&Device::new()?).await?.2.status == 200, "the control: new keys");
    Ok(())
}

/// While decisions cannot be written down nobody gets anything, and nothing is used up.
async fn nothing_without_a_record(ground: &Ground) -> anyhow::Result<()> {
    let poller = "acme-corp/bergen/p7";
    let token = ground.token(poller).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let device = Device::new()?;
    let gate = ground.deployment.up.platform.connect_gate().await?;
    gate.ensure_log(&LogSpec { max_message_bytes: 1, ..DECISIONS_LOG }, 1).await?;
    for bad in [device.request(&token, poller)?, device.request(&token, "xyz-inc/lima/p1")?] {
        let said = ask(&desk, &bad).await?;
        ensure!(said.status == 503 && said.body["refused"] == "not_now", "{said:?}");
    }
    let (shown, _) = ground.operator().expect(0, &["poller", "show", poller]).await?;
    ensure!(shown[0]["token"]["state"] == "open", "{shown:?}");
    gate.ensure_log(&DECISIONS_LOG, 1).await?;
    ensure!(ask(&desk, &device.request(&token, poller)?).await?.status == 200, "the control");
    Ok(())
}

/// Without the key that has signed them all tokens are worthless, at once.
async fn the_key_is_deleted(ground: &Ground) -> anyhow::Result<()> {
    let poller = "acme-corp/bergen/p6";
    let token = ground.token(poller).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let device = Device::new()?;
    std::fs::remove_file(Layout::new(ground.deployment.home().to_owned()).enrolment_key())?;
    refused(&ask(&desk, &device.request(&token, poller)?).await?, "token_foreign")?;
    let token = ground.token(poller).await?;
    ensure!(ask(&desk, &device.request(&token, poller)?).await?.status == 200, "the control");
    Ok(())
}

/// Ten devices with one token at once: one of them has it.
async fn a_race(ground: &Ground) -> anyhow::Result<()> {
    let poller = "acme-corp/bergen/p2";
    let token = ground.token(poller).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let devices = (0..10).map(|_| Device::new()).collect::<Result<Vec<_>, _>>()?;
    let requests = devices.iter().map(|device| device.request(&token, poller)).collect::<Result<Vec<_>, _>>()?;
    let said: Vec<Said> =
        join_all(requests.iter().map(|request| ask(&desk, request))).await.into_iter().collect::<Result<_, _>>()?;
    let enrolled = said.iter().filter(|said| said.status == 200).count();
    let used = said.iter().filter(|said| said.body["refused"] == "token_used").count();
    ensure!((enrolled, used) == (1, 9), "{said:?}");
    Ok(())
}

/// With a good token, for other names and with other keys.
async fn other_names_and_keys(ground: &Ground) -> anyhow::Result<()> {
    let poller = "acme-corp/bergen/p3";
    let token = ground.token(poller).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let device = Device::new()?;
    for (name, tenant, asked) in [
        ("xyz-inc/bergen/p3", "xyz-inc", "leaf.bergen.xyz-inc"),
        ("acme-corp/oslo/p3", "acme-corp", "leaf.oslo.acme-corp"),
        ("acme-corp/bergen/p1", "acme-corp", "p1.bergen.acme-corp"),
    ] {
        refused(&ask(&desk, &device.request(&token, name)?).await?, "csr_other_name")?;
        let is_it = |one: &Decision| one.outcome == "csr_other_name" && one.detail.contains(asked);
        let decided = ground.decided(asked, is_it).await?;
        ensure!(
            decided.expected.as_deref() == Some("acme-corp") && decided.actual.as_deref() == Some(tenant),
            "{decided:?}"
        );
    }
    let good = || device.request(&token, poller);
    let mut stolen = good()?;
    stolen.batch_key = Device::new()?.batch.public_key();
    refused(&ask(&desk, &stolen).await?, "csr_keys")?;
    let mut same = good()?;
    same.forwarder_csr.clone_from(&Device::new()?.request(&token, poller)?.leaf_csr);
    refused(&ask(&desk, &same).await?, "csr_other_name")?;
    for body in ["", "{}", "[]", "{\"token\":1}"] {
        refused(&send(&desk, body.to_owned()).await?, "request_unreadable")?;
    }
    let long = send(&desk, "x".repeat(64 * 1024)).await?;
    ensure!(long.status == 413, "{long:?}");
    // None of it has used the token.
    let said = ask(&desk, &good()?).await?;
    ensure!(said.status == 200, "the control: {said:?}");
    Ok(())
}

/// Certificates go on for their own keys and names, while they are current and not without end.
async fn renewals(ground: &Ground) -> anyhow::Result<()> {
    let poller = "acme-corp/bergen/p4";
    let token = ground.token(poller).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let (device, stranger) = (Device::new()?, Device::new()?);
    refused(&renew(&desk, &device.renewal(poller)?).await?, "renewal_not_current")?;
    ensure!(ask(&desk, &device.request(&token, poller)?).await?.status == 200, "it is not enrolled");
    refused(&renew(&desk, &stranger.renewal(poller)?).await?, "renewal_not_current")?;
    ground.recorded("renewal_not_current", None, Some("acme-corp")).await?;
    for other in ["acme-corp/bergen/p1", "acme-corp/oslo/p1", "xyz-inc/lima/p1", "no-such/lima/p1"] {
        refused(&renew(&desk, &device.renewal(other)?).await?, "renewal_not_current")?;
    }
    let mut named = device.renewal(poller)?;
    named.csrs = device.renewal("xyz-inc/lima/p1")?.csrs;
    refused(&renew(&desk, &named).await?, "csr_other_name")?;
    ground.recorded("csr_other_name", None, Some("xyz-inc")).await?;
    named.csrs.clear();
    refused(&renew(&desk, &named).await?, "csr_keys")?;
    // The leaf's name is the whole site's, and its key one machine's: under another poller's name it is worth nothing.
    let leaf_of = |device: &Device, name: &str| -> anyhow::Result<RenewalRequest> {
        let mut request = device.renewal(name)?;
        request.csrs.retain(|(end, _)| *end == DeviceEnd::Leaf);
        Ok(request)
    };
    refused(&renew(&desk, &leaf_of(&device, "acme-corp/bergen/p2")?).await?, "renewal_not_current")?;
    let mut twice = leaf_of(&device, poller)?;
    twice.csrs.extend(twice.csrs.clone());
    refused(&renew(&desk, &twice).await?, "csr_keys")?;
    // What it got by its token is good for long.
    refused(&renew(&desk, &device.renewal(poller)?).await?, "renewal_not_due")?;
    device.age(ground, poller)?;
    // With the one that it got by its token: five within a day.
    let said = renew(&desk, &leaf_of(&device, poller)?).await?;
    ensure!(said.status == 200, "the control: {said:?}");
    for _ in 0..3 {
        let said = renew(&desk, &device.renewal(poller)?).await?;
        ensure!(said.status == 200, "the control: {said:?}");
    }
    refused(&renew(&desk, &device.renewal(poller)?).await?, "renewal_too_often")?;
    let operator = ground.operator();
    operator.expect(0, &["poller", "revoke", poller]).await?;
    refused(&renew(&desk, &device.renewal(poller)?).await?, "renewal_not_current")?;
    // Somebody else is that poller now: what the first one has goes on under no name.
    operator.expect(0, &["poller", "remove", poller]).await?;
    let token = ground.token(poller).await?;
    let next = Device::new()?;
    ensure!(ask(&desk, &next.request(&token, poller)?).await?.status == 200, "it is not enrolled");
    refused(&renew(&desk, &leaf_of(&device, poller)?).await?, "renewal_not_current")?;
    // The control: that one is believed, and has to wait.
    refused(&renew(&desk, &leaf_of(&next, poller)?).await?, "renewal_not_due")
}

/// Whoever is suspended, removed or somebody else by now gets nothing with what was given out before.
async fn who_is_closed(ground: &Ground) -> anyhow::Result<()> {
    let operator = ground.operator();
    operator.expect(0, &["tenant", "add", "north-bank"]).await?;
    let poller = "north-bank/oslo/p1";
    let token = ground.token(poller).await?;
    let desk = EnrolmentClaims::read(&token)?;
    let device = Device::new()?;
    let request = device.request(&token, poller)?;
    operator.expect(0, &["tenant", "suspend", "north-bank"]).await?;
    refused(&ask(&desk, &request).await?, "token_tenant_closed")?;
    ground.recorded("token_tenant_closed", Some("north-bank"), Some("north-bank")).await?;
    operator.expect(4, &["poller", "add", poller]).await?;
    operator.expect(0, &["tenant", "resume", "north-bank"]).await?;
    // The slug is given away again: the same words, another account.
    operator.expect(0, &["tenant", "offboard", "north-bank"]).await?;
    operator.expect(0, &["tenant", "offboard", "north-bank", "--purge", "--no-export", "--yes"]).await?;
    refused(&ask(&desk, &request).await?, "token_other_account")?;
    operator.expect(0, &["tenant", "add", "north-bank"]).await?;
    operator.expect(0, &["site", "add", "north-bank/oslo"]).await?;
    refused(&ask(&desk, &request).await?, "token_other_account")?;
    ground.recorded("token_other_account", Some("north-bank"), Some("north-bank")).await?;

    let fresh = ground.token(poller).await?;
    operator.expect(0, &["site", "remove", "north-bank/oslo", "--with-pollers"]).await?;
    refused(&ask(&desk, &device.request(&fresh, poller)?).await?, "token_withdrawn")?;
    let fresh = ground.token(poller).await?;
    operator.expect(0, &["poller", "remove", poller]).await?;
    refused(&ask(&desk, &device.request(&fresh, poller)?).await?, "token_withdrawn")?;
    let fresh = ground.token(poller).await?;
    let said = ask(&desk, &device.request(&fresh, poller)?).await?;
    ensure!(said.status == 200, "the control: {said:?}");
    operator.expect(0, &["poller", "revoke", poller]).await?;
    refused(&ask(&desk, &device.request(&fresh, poller)?).await?, "token_withdrawn")
}

#[tokio::test]
async fn whoever_has_no_good_token_for_exactly_this_name_gets_nothing() -> anyhow::Result<()> {
    let ground = Ground::start().await?;
    tokens(&ground).await.context("tokens")?;
    a_race(&ground).await.context("a race")?;
    other_names_and_keys(&ground).await.context("names and keys")?;
    a_thief_does_not_come_back(&ground).await.context("a thief")?;
    keys_that_were_revoked_stay_out(&ground).await.context("revoked keys")?;
    nothing_without_a_record(&ground).await.context("without a record")?;
    the_key_is_deleted(&ground).await.context("without the key")?;
    renewals(&ground).await.context("renewals")?;
    who_is_closed(&ground).await.context("closed")?;
    ground.deployment.stop().await
}
