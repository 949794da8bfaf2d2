//! A server that was away during a suspension, a deletion and a restoration; and data that outlives a deleted account.

use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::operator::AccountRecord;
use bulkhead_accounts::resolver::{
    Base, Missing, PushError, SYNC_INTERVAL, account_streams, ensure_deleted, ensure_stays_deleted, list, servers,
};
use bulkhead_bus::Role;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{ConnectError, LIMIT, RawClient};
use serde_json::{Value, json};

use crate::ground::{Ground, base_of};

const AWAY: usize = 3;
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

async fn all_there(ground: &Ground) -> anyhow::Result<()> {
    let there = eventually("three servers", LIMIT, || async {
        let there = servers(ground.system(), 3).await.map_err(|error| error.to_string())?;
        if there.len() == 3 { Ok(()) } else { Err(format!("{} servers", there.len())) }
    });
    Ok(there.await?)
}

async fn knock(ground: &Ground, server: usize, account: &str) -> anyhow::Result<Result<RawClient, ConnectError>> {
    let identity = ground.identity(account, Role::Viewer, "knock")?;
    Ok(RawClient::connect(&ground.deployment.hub_servers()[server - 1], &identity).await)
}

/// Every one of `numbers` does not admit a user of the account.
async fn is_refused(ground: &Ground, numbers: &[usize], account: &str) -> anyhow::Result<()> {
    for &number in numbers {
        let refused = eventually("a refusal", LIMIT, || async {
            match knock(ground, number, account).await {
                Ok(Err(ConnectError::Refused(_))) => Ok(()),
                Ok(Ok(_)) => Err("it is let in".to_owned()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        });
        refused.await.with_context(|| format!("{account} at hub-{number}"))?;
    }
    Ok(())
}

async fn is_admitted(ground: &Ground, account: &str) -> anyhow::Result<()> {
    for number in 1..=3 {
        knock(ground, number, account).await?.with_context(|| format!("{account} at hub-{number}"))?;
    }
    Ok(())
}

async fn holders(ground: &Ground, account: &AccountRecord) -> anyhow::Result<Vec<String>> {
    let listed = list(ground.system(), 3).await?;
    let holds = listed.into_iter().filter(|(_, keys)| keys.contains(account.key.as_str()));
    Ok(holds.map(|(server, _)| server.name).collect())
}

pub(crate) async fn a_suspension_reaches_who_was_away(ground: &mut Ground) -> anyhow::Result<()> {
    let account = ground.account("suspended")?;
    ground.push(&account, Base::Absent).await?;
    is_admitted(ground, "suspended").await?;
    ground.deployment.hub_server(AWAY)?.child.kill()?;
    let suspended = ground.changed("suspended", |body| body.limits.conn = 0)?;
    let outcome = ground.push(&suspended, base_of(&account)).await;
    let Err(PushError::NotConverged { missing, .. }) = outcome else { anyhow::bail!("{outcome:?}") };
    assert_eq!(missing, [("hub-3".to_owned(), Missing::Silent)]);
    is_refused(ground, &[1, 2], "suspended").await?;
    ground.restart(AWAY)?;
    all_there(ground).await?;
    // Level-triggered: the same push again finds it in force, or brings it there.
    is_refused(ground, &[3], "suspended").await?;
    let resumed = ground.changed("suspended", |body| body.limits.conn = account.claims.nats.limits.conn)?;
    ground.push(&resumed, base_of(&suspended)).await?;
    is_admitted(ground, "suspended").await
}

pub(crate) async fn a_deletion_is_undone_by_who_was_away_and_is_done_again(ground: &mut Ground) -> anyhow::Result<()> {
    let account = ground.account("deleted")?;
    let signer = ground.signer()?;
    ground.push(&account, Base::Absent).await?;
    is_admitted(ground, "deleted").await?;
    ground.deployment.hub_server(AWAY)?.child.kill()?;
    let report = ensure_deleted(ground.system(), &account.key, &signer, &ground.known).await?;
    assert_eq!((report.deleted.len(), report.unasked.as_slice()), (2, &["hub-3".to_owned()][..]), "{report:?}");
    assert!(!report.is_gone(), "the server that is away has it still");
    is_refused(ground, &[1, 2], "deleted").await?;
    assert_eq!(holders(ground, &account).await?, Vec::<String>::new());

    ground.restart(AWAY)?;
    all_there(ground).await?;
    let back = eventually("the account back on every server", LIMIT, || async {
        let holders = holders(ground, &account).await.map_err(|error| error.to_string())?;
        if holders.len() == 3 { Ok(()) } else { Err(format!("{holders:?}")) }
    });
    back.await.context("no server remembers a deletion")?;
    let again = ensure_stays_deleted(ground.system(), &account.key, &signer, &ground.known, SYNC_INTERVAL).await?;
    assert!(again.is_gone() && again.deleted.len() == 3, "{again:?}");
    assert_eq!(holders(ground, &account).await?, Vec::<String>::new());
    is_refused(ground, &[1, 2, 3], "deleted").await?;
    let nothing = ensure_deleted(ground.system(), &account.key, &signer, &ground.known).await?;
    assert!(nothing.is_gone() && nothing.deleted.is_empty(), "{nothing:?}");

    let system = ground.deployment.account("sys")?;
    let refused = ensure_deleted(ground.system(), &system.key, &signer, &ground.known).await?;
    let said: Vec<String> =
        refused.refused.iter().filter_map(|(_, why)| why.as_ref().map(ToString::to_string)).collect();
    assert!(
        !refused.is_gone() && said.iter().all(|said| said.contains("system account cannot be deleted")),
        "{said:?}"
    );
    Ok(())
}

async fn ask(client: &RawClient, subject: &str, body: Value) -> anyhow::Result<Value> {
    client.subscribe("_INBOX_away.>").await?;
    let inbox = format!("_INBOX_away.{}", subject.replace('.', "-"));
    let body = if body.is_null() { String::new() } else { body.to_string() };
    client.publish(subject, Some(&inbox), None, body.as_bytes()).await?;
    let answer = client.wait_for(ANSWER_LIMIT, |message| message.subject == inbox).await?;
    Ok(serde_json::from_slice(&answer.body)?)
}

pub(crate) async fn a_deleted_account_comes_back_only_signed_anew_and_with_its_streams(
    ground: &mut Ground,
) -> anyhow::Result<()> {
    ground.account("restored")?;
    let account = ground.changed("restored", |body| {
        body.limits.disk_storage = 10 << 20;
        body.limits.streams = 1;
        body.limits.consumer = 1;
    })?;
    ground.push(&account, Base::Absent).await?;
    let key = account.key.to_string();
    assert_eq!(account_streams(ground.system(), &key, 3).await?, []);
    let identity = ground.deployment.unrestricted_identity("restored").await?;
    let client = RawClient::connect(&ground.deployment.hub_servers()[0], &identity).await?;
    let config =
        json!({"name": "KEPT", "subjects": ["kept"], "storage": "file", "num_replicas": 3, "max_bytes": 1 << 20});
    let made = ask(&client, "$JS.API.STREAM.CREATE.KEPT", config).await?;
    assert!(made["error"].is_null(), "{made}");
    ask(&client, "kept", json!("a message")).await?;
    let held = eventually("a message in each copy", LIMIT, || async {
        let found = account_streams(ground.system(), &key, 3).await.map_err(|error| error.to_string())?;
        match found.as_slice() {
            [one] if one.stream == "KEPT" && one.messages == 1 && one.servers.len() == 3 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    held.await?;

    let last = ground.deployment.account("restored")?;
    let signer = ground.signer()?;
    let deleted = ensure_deleted(ground.system(), &last.key, &signer, &ground.known).await?;
    assert!(deleted.is_gone(), "{deleted:?}");
    client.wait_closed(LIMIT).await?;
    assert_eq!(account_streams(ground.system(), &key, 3).await?, [], "the servers do not tell of what is left on disk");
    // The identical token is stored and in memory, and admits nobody.
    let outcome = ground.push(&last, Base::Absent).await;
    let Err(PushError::NotConverged { missing, .. }) = outcome else { anyhow::bail!("{outcome:?}") };
    assert!(missing.len() == 3 && missing.iter().all(|(_, what)| *what == Missing::Disabled), "{missing:?}");
    is_refused(ground, &[1, 2, 3], "restored").await?;
    // A server that starts meanwhile loads it and admits: they differ until it is signed anew.
    let anew = ground.changed("restored", |_| {})?;
    ground.push(&anew, base_of(&last)).await?;
    is_admitted(ground, "restored").await?;
    let back = eventually("the stream of the account that was deleted", Duration::from_secs(30), || async {
        let found = account_streams(ground.system(), &key, 3).await.map_err(|error| error.to_string())?;
        match found.as_slice() {
            [one] if one.stream == "KEPT" && one.messages == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    back.await.context("data outlives its account")?;
    // Nobody leads the stream again before the servers start anew, so its deletion is done and not answered.
    let client = RawClient::connect(&ground.deployment.hub_servers()[0], &identity).await?;
    client.publish("$JS.API.STREAM.DELETE.KEPT", Some("_INBOX_away.deleted"), None, b"").await?;
    client.flush().await?;
    let gone = eventually("the stream being deleted", LIMIT, || async {
        let found = account_streams(ground.system(), &key, 3).await.map_err(|error| error.to_string())?;
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });
    Ok(gone.await?)
}
