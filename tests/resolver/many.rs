//! Many accounts at once: each is proved, and those that fail do not stop the others.

use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::operator::AccountRecord;
use bulkhead_accounts::resolver::{
    Base, Missing, Order, PushError, PushedMany, connections, ensure_deleted, pull, push_many, servers,
};
use bulkhead_bus::AccountKey;
use bulkhead_claims::{AccountBody, Claims, KeyKind, SigningKey, encode};

use crate::ground::{Ground, now_s};

const COUNT: usize = 100;
const LIMIT: Duration = Duration::from_secs(30);

/// Accounts that are in no store, built as a tenant's is.
fn accounts(ground: &Ground, count: usize) -> anyhow::Result<Vec<(String, AccountKey, String)>> {
    let template: AccountRecord = ground.account("template")?;
    let signer = ground.signer()?;
    let sign = |index: usize| -> anyhow::Result<(String, AccountKey, String)> {
        let key = SigningKey::generate(KeyKind::Account).public().to_owned();
        let text = serde_json::to_string(&template.claims.nats)?.replace(template.key.as_str(), &key);
        let name = format!("many-{index}");
        let mut claims = Claims::new(key.clone(), name.clone(), now_s(), serde_json::from_str::<AccountBody>(&text)?);
        Ok((name, key.parse()?, encode(&mut claims, &signer)?))
    };
    (0..count).map(sign).collect()
}

fn orders(accounts: &[(String, AccountKey, String)]) -> Vec<Order<'_>> {
    accounts.iter().map(|(name, account, token)| Order { name, account, token, base: Base::Absent }).collect()
}

pub(crate) async fn accounts_are_proved_each(ground: &Ground) -> anyhow::Result<()> {
    let accounts = accounts(ground, COUNT)?;
    let mut orders = orders(&accounts);
    // One that is not the operator's, among all the others.
    let rogue = SigningKey::generate(KeyKind::Operator);
    let stranger = ground.token_by(&ground.account("template")?, &rogue, now_s())?;
    let key = ground.account("template")?.key;
    orders.push(Order { name: "stranger", account: &key, token: &stranger, base: Base::Absent });
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let progress = |done: usize| seen.store(done, std::sync::atomic::Ordering::SeqCst);
    let pushed = push_many(ground.system(), &orders, &ground.known, Duration::from_secs(3), &progress).await?;
    assert!(pushed.took < LIMIT, "{COUNT} accounts took {:?}", pushed.took);
    assert_eq!((pushed.in_force, seen.into_inner()), (COUNT, COUNT + 1), "{:?}", pushed.failed);
    let Some(PushError::NotConverged { missing, .. }) = pushed.failed.get("stranger") else {
        anyhow::bail!("{:?}", pushed.failed)
    };
    assert!(missing.len() == ground.known.count() && missing.iter().all(|(_, what)| *what == Missing::NotLoaded));
    let held = pull(ground.system(), ground.known.count()).await?;
    for (_, key, token) in &accounts {
        assert_eq!(held[key.as_str()].tokens.get(token), Some(&ground.known.count()));
    }
    // Once more: what is in force is not sent, and what only lies on disks is not in force.
    let again = push_many(ground.system(), &orders, &ground.known, Duration::from_secs(3), &|_| {}).await?;
    assert_eq!((again.in_force, again.unchanged, again.failed.len()), (COUNT, COUNT, 1), "{:?}", again.failed);
    assert_eq!(pushed.unchanged, 0);
    // The rogue token is gone again.
    ensure_deleted(ground.system(), &key, &ground.signer()?, &ground.known).await?;
    Ok(())
}

/// The server that our own connection is to.
async fn our_server(ground: &Ground) -> anyhow::Result<usize> {
    let system = ground.deployment.key_of("sys")?;
    let all = connections(ground.system(), Some(&system), ground.known.count()).await?;
    let ours = all.iter().find(|one| one.name == "system-operator").context("our own connection")?;
    let number = ours.server.name.strip_prefix("hub-").context("a server of the hub")?;
    Ok(number.parse()?)
}

async fn all_there(ground: &Ground) -> anyhow::Result<()> {
    let there = bulkhead_runtime::eventually("every server", LIMIT, || async {
        match servers(ground.system(), ground.known.count()).await {
            Ok(there) if there.len() == ground.known.count() => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    });
    Ok(there.await?)
}

fn check_named(pushed: &PushedMany, away: usize) -> anyhow::Result<()> {
    for (name, error) in &pushed.failed {
        let PushError::NotConverged { missing, .. } = error else { anyhow::bail!("{name}: {error}") };
        assert_eq!(missing.as_slice(), [(format!("hub-{away}"), Missing::Silent)], "{name}");
    }
    Ok(())
}

/// The server that is lost is the one that we speak to: nobody answers until our connection is at another one.
pub(crate) async fn who_is_away_is_named_for_each(ground: &mut Ground) -> anyhow::Result<()> {
    let lost = our_server(ground).await?;
    ground.deployment.hub_server(lost)?.child.kill()?;
    let first = accounts(ground, 10)?;
    let pushed = push_many(ground.system(), &orders(&first), &ground.known, LIMIT, &|_| {}).await?;
    assert_eq!((pushed.in_force, pushed.failed.len()), (0, 10));
    check_named(&pushed, lost)?;
    assert!(pushed.took < LIMIT, "those that are away were waited for");
    ground.deployment.up.restart_hub_server(lost)?;
    all_there(ground).await?;
    let pushed = push_many(ground.system(), &orders(&first), &ground.known, LIMIT, &|_| {}).await?;
    assert_eq!(pushed.in_force, 10, "{:?}", pushed.failed);
    the_server_that_we_speak_to_is_lost_in_the_middle(ground).await
}

async fn the_server_that_we_speak_to_is_lost_in_the_middle(ground: &mut Ground) -> anyhow::Result<()> {
    let accounts = accounts(ground, COUNT)?;
    let orders = orders(&accounts);
    let lost = our_server(ground).await?;
    let (system, known) = (ground.system().clone(), ground.known.clone());
    let server = std::cell::RefCell::new(ground.deployment.hub_server(lost)?);
    let lose_it = |done: usize| {
        if done == COUNT / 4 {
            server.borrow_mut().child.kill().expect("a server can be killed");
        }
    };
    let pushed = push_many(&system, &orders, &known, LIMIT, &lose_it).await?;
    assert!(pushed.in_force >= COUNT / 4 && !pushed.failed.is_empty(), "{} in force", pushed.in_force);
    check_named(&pushed, lost)?;
    ground.deployment.up.restart_hub_server(lost)?;
    all_there(ground).await?;
    // The same again is all that is to be done.
    let again = push_many(&system, &orders, &known, LIMIT, &|_| {}).await?;
    assert_eq!(again.in_force, COUNT, "{:?}", again.failed);
    Ok(())
}
