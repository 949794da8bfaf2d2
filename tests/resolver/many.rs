//! Many accounts at once: each is proved, and those that fail do not stop the others.

use std::time::Duration;

use bulkhead_accounts::operator::AccountRecord;
use bulkhead_accounts::resolver::{Base, Missing, Order, PushError, ensure_deleted, pull, push_many, servers};
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
    // The rogue token is gone again.
    ensure_deleted(ground.system(), &key, &ground.signer()?, &ground.known).await?;
    Ok(())
}

pub(crate) async fn who_is_away_is_named_for_each(ground: &mut Ground) -> anyhow::Result<()> {
    ground.deployment.hub_server(2)?.child.kill()?;
    // Our own connection may have been to that server: until it is at another one, nobody answers us.
    bulkhead_runtime::eventually("the other two answering", LIMIT, async || {
        match servers(ground.system(), ground.known.count()).await {
            Ok(there) if there.len() == 2 => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await?;
    let accounts = accounts(ground, 10)?;
    let pushed = push_many(ground.system(), &orders(&accounts), &ground.known, LIMIT, &|_| {}).await?;
    assert_eq!((pushed.in_force, pushed.failed.len()), (0, 10));
    for error in pushed.failed.values() {
        let PushError::NotConverged { missing, .. } = error else { anyhow::bail!("{error}") };
        assert_eq!(missing.as_slice(), [("hub-2".to_owned(), Missing::Silent)]);
    }
    assert!(pushed.took < LIMIT, "those that are away were waited for");
    Ok(())
}
