//! Push means in force.

use anyhow::Context;
use bulkhead_accounts::operator::SYSTEM;
use bulkhead_accounts::resolver::{
    Base, KnownServers, Missing, Order, Patience, ProbeResult, PushError, in_memory, probe, pull, push_order,
};
use bulkhead_bus::Role;
use bulkhead_claims::{KeyKind, SigningKey};
use bulkhead_testkit::{LIMIT, RawClient};

use crate::ground::{Ground, base_of, now_s};

fn missing(outcome: Result<impl std::fmt::Debug, PushError>) -> anyhow::Result<Vec<(String, Missing)>> {
    match outcome {
        Err(PushError::NotConverged { missing, .. }) => Ok(missing),
        other => anyhow::bail!("not what was expected: {other:?}"),
    }
}

pub(crate) async fn what_is_pushed_is_in_force_and_admits_its_users(ground: &Ground) -> anyhow::Result<()> {
    let account = ground.account("newcomer")?;
    let user = ground.user("newcomer", Role::Viewer, "probe")?;
    let servers = ground.known.count();
    let before = probe(ground.system(), &user, account.key.as_str(), &ground.known).await;
    assert_eq!(before.unproved.len(), servers, "nobody knows the account yet: {before:?}");
    let refused = before.by_url.iter().all(|(_, result)| matches!(result, ProbeResult::Refused(_)));
    assert!(refused, "{before:?}");

    let report = ground.push(&account, Base::Absent).await?;
    assert_eq!(report.servers.len(), servers);
    assert!(report.servers.iter().all(|server| server.is_stored && server.is_in_memory && server.is_complete));
    let memories = in_memory(ground.system(), account.key.as_str(), servers).await?;
    assert!(memories.values().all(|token| token.as_ref() == Some(&account.token)), "{memories:?}");
    let after = probe(ground.system(), &user, account.key.as_str(), &ground.known).await;
    assert!(after.is_proved(), "{after:?}");
    for (url, result) in &after.by_url {
        let ProbeResult::Admitted(seen) = result else { anyhow::bail!("{url}: {result:?}") };
        assert_eq!(Some(seen.issuer_key.as_str()), account.role_key(Role::Viewer));
        assert_eq!((seen.user_name.as_str(), seen.account.as_str()), ("probe", account.key.as_str()));
    }
    // A user of one account is nobody's proof of another.
    let other = ground.deployment.key_of("acme-corp")?;
    let astray = probe(ground.system(), &user, &other, &ground.known).await;
    assert!(!astray.is_proved() && matches!(astray.by_url[0].1, ProbeResult::Astray(_)), "{astray:?}");
    // Again is as good as once.
    ground.push(&account, Base::Absent).await?;
    Ok(())
}

pub(crate) async fn what_somebody_else_changed_is_not_overwritten(ground: &Ground) -> anyhow::Result<()> {
    let first = ground.account("shared")?;
    ground.push(&first, Base::Absent).await?;
    let theirs = ground.changed("shared", |body| body.limits.conn = 7)?;
    ground.push(&theirs, base_of(&first)).await?;
    let ours = ground.changed("shared", |body| body.limits.conn = 9)?;
    for base in [base_of(&first), Base::Absent] {
        let error = ground.push(&ours, base).await.err().context("somebody's change was overwritten")?;
        let said = error.to_string();
        let PushError::Changed { held, .. } = error else { anyhow::bail!("{said}") };
        assert!(said.contains("limits.conn") && said.contains(&theirs.claims.iss), "{said}");
        assert_eq!(held[0].issued_at, theirs.claims.iat);
        assert_eq!((held[0].servers.as_slice(), held[0].copies), (&["hub-1".to_owned()][..], 1));
    }
    let memory = in_memory(ground.system(), first.key.as_str(), 1).await?;
    assert_eq!(memory["hub-1"].as_ref(), Some(&theirs.token), "nothing was overwritten");
    // Issued before what servers hold: a server that was away would bring theirs back.
    let late = ground.token_by(&ours, &ground.signer()?, theirs.claims.iat)?;
    let error = ground.push_token(&ours, &late, base_of(&theirs)).await;
    assert!(matches!(error, Err(PushError::NotNewer { .. })), "{error:?}");
    ground.push(&ours, base_of(&theirs)).await?;
    Ok(())
}

pub(crate) async fn of_two_at_once_at_most_one_is_told_that_it_won(ground: &Ground) -> anyhow::Result<()> {
    let first = ground.account("contested")?;
    ground.push(&first, Base::Absent).await?;
    let mut known_to_both = base_of(&first);
    for round in 0..5 {
        let one = ground.changed("contested", |body| body.limits.conn = 11 + round)?;
        let signer = ground.signer()?;
        let mut body = one.clone();
        body.claims.nats.limits.conn = 50 + round;
        let two = ground.token_by(&body, &signer, one.claims.iat)?;
        let (left, right) = tokio::join!(
            ground.push(&one, known_to_both.clone()),
            ground.push_token(&body, &two, known_to_both.clone())
        );
        assert!(left.is_err() || right.is_err(), "both were told that theirs is in force");
        let memory = in_memory(ground.system(), first.key.as_str(), 1).await?;
        let held = memory["hub-1"].clone().context("the account is loaded")?;
        if left.is_ok() || right.is_ok() {
            assert_eq!(held == one.token, left.is_ok(), "{left:?} {right:?}");
        }
        // Whoever lost does not win by trying again from what it knew.
        let again = ground.changed("contested", |body| body.limits.conn = 99)?;
        let refused = ground.push(&again, known_to_both).await;
        assert!(matches!(refused, Err(PushError::Changed { .. })), "{refused:?}");
        known_to_both = Base::of_token(&held).context("a token")?;
    }
    Ok(())
}

pub(crate) async fn what_a_server_refuses_is_readable(ground: &Ground) -> anyhow::Result<()> {
    let account = ground.account("refused")?;
    let token = ground.token_by(&account, &ground.identity_key()?, now_s())?;
    let error = ground.push_token(&account, &token, Base::Absent).await.err().context("an identity's token passed")?;
    let said = error.to_string();
    assert!(
        matches!(error, PushError::Refused { .. }) && said.contains("sign it with an operator signing key"),
        "{said}"
    );
    let mut invalid = account.clone();
    invalid.claims.nats.limits.imports = 0;
    let token = ground.token_by(&invalid, &ground.signer()?, now_s())?;
    let said = ground.push_token(&account, &token, Base::Absent).await.err().context("an invalid one")?.to_string();
    assert!(said.contains("bulkhead validate"), "{said}");
    let other = ground.account("newcomer")?;
    let error = ground.push_token(&account, &other.token, Base::Absent).await;
    assert!(matches!(error, Err(PushError::OtherSubject { .. })), "{error:?}");
    let error = ground.push_token(&account, "gar.ba.ge", Base::Absent).await;
    assert!(matches!(error, Err(PushError::Token { .. })), "{error:?}");
    let held = pull(ground.system(), 1).await?;
    assert!(!held.contains_key(account.key.as_str()), "what was refused is held");
    Ok(())
}

pub(crate) async fn a_server_that_says_yes_and_does_not_apply_is_not_believed(ground: &Ground) -> anyhow::Result<()> {
    let rogue = SigningKey::generate(KeyKind::Operator);
    let loaded = ground.account("loaded")?;
    ground.push(&loaded, Base::Absent).await?;
    let token = ground.token_by(&loaded, &rogue, loaded.claims.iat + 5)?;
    let found = missing(ground.push_token(&loaded, &token, base_of(&loaded)).await)?;
    let other = Missing::OtherToken { issued_at: loaded.claims.iat };
    assert_eq!(found, [("hub-1".to_owned(), other)], "a rogue operator's token over one in force");
    // It lies on the disk now: whoever mends it says so.
    let mended = ground.changed("loaded", |body| body.limits.conn += 1)?;
    assert!(matches!(ground.push(&mended, base_of(&loaded)).await, Err(PushError::Changed { .. })));
    ground.push(&mended, Base::Anything).await?;

    let fresh = ground.account("fresh")?;
    let token = ground.token_by(&fresh, &rogue, now_s())?;
    let found = missing(ground.push_token(&fresh, &token, Base::Absent).await)?;
    assert_eq!(found, [("hub-1".to_owned(), Missing::NotLoaded)], "a rogue operator's token of a new account");
    a_responder_that_only_says_so(ground).await
}

/// Somebody in the system account who answers every push with 200, as a server of the hub that is none.
async fn a_responder_that_only_says_so(ground: &Ground) -> anyhow::Result<()> {
    let identity = ground.deployment.unrestricted_identity(SYSTEM).await?;
    let liar = RawClient::connect(&ground.deployment.hub(), &identity).await?;
    liar.subscribe("$SYS.REQ.CLAIMS.UPDATE").await?;
    liar.flush().await?;
    let account = ground.changed("newcomer", |body| body.limits.conn += 1)?;
    let known = KnownServers::named(["hub-1", "hub-2"].map(str::to_owned));
    let order = Order { name: "newcomer", account: &account.key, token: &account.token, base: Base::Anything };
    let patience = Patience::Everybody(std::time::Duration::from_secs(2));
    let answer = async {
        let asked = liar.wait_for(LIMIT, |message| message.subject == "$SYS.REQ.CLAIMS.UPDATE").await?;
        let reply = asked.reply.context("a push wants answers")?;
        let said =
            r#"{"server":{"name":"hub-2","id":"NLIAR","ver":"2.15.1"},"data":{"code":200,"message":"jwt updated"}}"#;
        liar.publish(&reply, None, None, said.as_bytes()).await?;
        liar.flush().await
    };
    let (pushed, answered) = tokio::join!(push_order(ground.system(), &order, &known, patience), answer);
    answered?;
    let found = missing(pushed)?;
    assert!(found.iter().all(|(server, _)| server == "hub-2") && found.len() == 1, "{found:?}");
    Ok(())
}
