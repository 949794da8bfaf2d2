//! Which connections a change closes: predicted, and then counted on real servers.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::operator::AccountRecord;
use bulkhead_accounts::resolver::{
    AccountChange, Base, ConnectionFacts, ConnectionKind, DrainError, Draining, Reason, blast_radius, drain, kick,
    name_roles,
};
use bulkhead_bus::Role;
use bulkhead_claims::{AccountBody, Claims, KeyKind, ScopedKey, SigningKey, UserBody, credentials_text, encode};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, RawClient, RawLeaf};
use serde_json::json;

use crate::ground::{Ground, base_of, now_s};

const NAME: &str = "closing";

/// Everybody who is connected in one round, so that nobody comes back by itself.
struct Crowd {
    clients: Vec<RawClient>,
    leaves: Vec<RawLeaf>,
}

impl Crowd {
    /// Three viewers, two admins, a bearer and two leaves, in this order.
    async fn gather(ground: &Ground) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for (role, name) in
            [(Role::Viewer, "v1"), (Role::Viewer, "v2"), (Role::Viewer, "v3"), (Role::Admin, "a1"), (Role::Admin, "a2")]
        {
            let identity = ground.identity(NAME, role, name)?;
            clients.push(RawClient::connect(&ground.deployment.hub(), &identity).await.context("connect a person")?);
        }
        let bearer = bearer(ground)?;
        clients.push(RawClient::connect(&ground.deployment.hub(), &bearer).await.context("connect a bearer")?);
        let mut leaves = Vec::new();
        for name in ["l1", "l2"] {
            let identity = ground.identity(NAME, Role::Leaf, name)?;
            leaves.push(RawLeaf::connect(&ground.deployment.hub_for_leaves(), &identity, name).await.context("link")?);
        }
        Ok(Self { clients, leaves })
    }
}

/// A user of a plain key of the account that needs no signature; see [`with_bearers`].
fn bearer(ground: &Ground) -> anyhow::Result<bulkhead_testkit::Identity> {
    let account = ground.deployment.account(NAME)?;
    let plain = account.claims.nats.signing_keys.iter().find(|key| key.role().is_none()).context("a plain key")?;
    let signer = ground.operator().keys().read(plain.key(), KeyKind::Account)?;
    let key = SigningKey::generate(KeyKind::User);
    let mut body = UserBody::scoped(account.key.to_string(), vec![]);
    body.subscribe.allow = vec!["nothing".to_owned()];
    body.unknown.insert("bearer_token".to_owned(), true.into());
    for limit in ["subs", "data", "payload"] {
        body.unknown.insert(limit.to_owned(), (-1).into());
    }
    let mut claims = Claims::new(key.public().to_owned(), "bearer".to_owned(), now_s(), body);
    let token = encode(&mut claims, &signer)?;
    let path = ground.deployment.home().join("bearer.creds");
    std::fs::write(&path, credentials_text(&token, &key)?)?;
    Ok(ground.deployment.person_identity("ops")?.with_creds(path))
}

/// The account with a plain key, in force, as every round begins.
async fn begin(ground: &Ground) -> anyhow::Result<AccountRecord> {
    let account = ground.account(NAME)?;
    let plain = ground.operator().keys().generate(KeyKind::Account)?.public().to_owned();
    let begun = ground.changed(NAME, |body| {
        *body = account.claims.nats.clone();
        body.signing_keys.push(ScopedKey::Plain(plain));
    })?;
    ground.push(&begun, Base::Anything).await?;
    Ok(begun)
}

fn scope(body: &mut AccountBody, role: Role) -> anyhow::Result<&mut bulkhead_claims::Scope> {
    let key = body.signing_keys.iter_mut().find(|key| key.role() == Some(role.name())).context("a role's key")?;
    match key {
        ScopedKey::Scoped(scope) => Ok(scope),
        ScopedKey::Plain(_) => anyhow::bail!("a plain key"),
    }
}

fn cids<'a>(all: impl IntoIterator<Item = &'a ConnectionFacts>) -> BTreeSet<u64> {
    all.into_iter().map(|one| one.cid).collect()
}

/// One kind of change, and how many of the eight it closes.
async fn check(
    ground: &Ground,
    name: &str,
    closes: usize,
    change: impl FnOnce(&mut AccountBody, &[ConnectionFacts]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let begun = begin(ground).await?;
    let crowd = Crowd::gather(ground).await?;
    let mut before = ground.connections(begun.key.as_str()).await?;
    assert_eq!(before.len(), 8, "{name}: {before:#?}");
    assert_eq!(before.iter().filter(|one| one.kind == ConnectionKind::Leaf).count(), 2);
    let old = serde_json::to_value(&begun.claims.nats)?;
    name_roles(&mut before, &old);
    assert_eq!(before.iter().filter(|one| one.role.as_deref() == Some("viewer")).count(), 3);
    assert_eq!(before.iter().filter(|one| one.role.as_deref() == Some("leaf")).count(), 2, "{before:#?}");
    let mut outcome = Ok(());
    let changed = ground.changed(NAME, |body| outcome = change(body, &before))?;
    outcome?;
    let new = serde_json::to_value(&changed.claims.nats)?;
    let plan = AccountChange { old: &old, new: &new, expires: changed.claims.exp, now: now_s() };
    let predicted = cids(blast_radius(&plan, &before).iter().map(|(one, _)| *one));
    assert_eq!(predicted.len(), closes, "{name}: {:?}", blast_radius(&plan, &before));
    ground.push(&changed, base_of(&begun)).await?;
    let settled = eventually("what was predicted being closed", LIMIT, || async {
        let after = ground.connections(begun.key.as_str()).await.map_err(|error| error.to_string())?;
        let closed: BTreeSet<u64> = cids(&before).difference(&cids(&after)).copied().collect();
        if closed == predicted { Ok(()) } else { Err(format!("{closed:?} instead of {predicted:?}")) }
    });
    settled.await.with_context(|| name.to_owned())?;
    // Nobody else a little later.
    for client in crowd.clients.iter().filter(|client| !client.is_closed()) {
        client.flush().await?;
    }
    let after = ground.connections(begun.key.as_str()).await?;
    assert_eq!(after.len(), 8 - closes, "{name}: {after:#?}");
    drop(crowd);
    let left = eventually("everybody leaving", LIMIT, || async {
        let after = ground.connections(begun.key.as_str()).await.map_err(|error| error.to_string())?;
        if after.is_empty() { Ok(()) } else { Err(format!("{} are left", after.len())) }
    });
    Ok(left.await?)
}

pub(crate) async fn what_is_predicted_is_what_is_closed(ground: &Ground) -> anyhow::Result<()> {
    check(ground, "nothing that closes", 0, |body, _| {
        body.limits.payload /= 2;
        body.imports.pop();
        Ok(())
    })
    .await?;
    check(ground, "suspended", 8, |body, _| {
        body.limits.conn = 0;
        Ok(())
    })
    .await?;
    check(ground, "too many", 3, |body, _| {
        body.limits.conn = 5;
        Ok(())
    })
    .await?;
    check(ground, "scope changed", 3, |body, _| {
        scope(body, Role::Viewer)?.template.publish.allow.push("more".to_owned());
        Ok(())
    })
    .await?;
    check(ground, "key removed", 2, |body, _| {
        body.signing_keys.retain(|key| key.role() != Some("admin"));
        Ok(())
    })
    .await?;
    check(ground, "leaf key removed", 2, |body, _| {
        body.signing_keys.retain(|key| key.role() != Some("leaf"));
        Ok(())
    })
    .await?;
    check(ground, "one user revoked, another issued later", 1, |body, before| {
        let of = |name: &str| before.iter().find(|one| one.user_name == name).context("a user");
        let (one, other) = (of("v2")?, of("a1")?);
        let before_it = other.issued_at.context("a time of issue")? - 1;
        let revoked = json!({one.user.as_str(): one.issued_at, other.user.as_str(): before_it});
        body.unknown.insert("revocations".to_owned(), revoked);
        Ok(())
    })
    .await?;
    check(ground, "a leaf revoked", 1, |body, before| {
        let leaf = before.iter().find(|one| one.user_name == "l1").context("a leaf")?;
        body.unknown.insert("revocations".to_owned(), json!({leaf.user.as_str(): leaf.issued_at}));
        Ok(())
    })
    .await?;
    check(ground, "everybody revoked", 8, |body, _| {
        body.unknown.insert("revocations".to_owned(), json!({"*": now_s()}));
        Ok(())
    })
    .await?;
    check(ground, "no bearers", 1, |body, _| {
        body.limits.disallow_bearer = true;
        Ok(())
    })
    .await?;
    check(ground, "fewer leaves on one server, where nobody is told", 0, |body, _| {
        body.limits.leaf = 1;
        Ok(())
    })
    .await?;
    an_account_that_expires_closes_everybody_then(ground).await
}

async fn an_account_that_expires_closes_everybody_then(ground: &Ground) -> anyhow::Result<()> {
    let begun = begin(ground).await?;
    let crowd = Crowd::gather(ground).await?;
    let before = ground.connections(begun.key.as_str()).await?;
    let at = now_s() + 3;
    let mut claims =
        Claims::new(begun.key.to_string(), NAME.to_owned(), begun.claims.iat + 1, begun.claims.nats.clone());
    claims.exp = Some(at);
    let token = encode(&mut claims, &ground.signer()?)?;
    let body = serde_json::to_value(&claims.nats)?;
    let plan = AccountChange { old: &body, new: &body, expires: Some(at), now: now_s() };
    let predicted = blast_radius(&plan, &before);
    assert!(predicted.len() == 8 && predicted.iter().all(|(_, reason)| *reason == Reason::Expires { at }));
    ground.push_token(&begun, &token, base_of(&begun)).await?;
    for client in &crowd.clients {
        client.wait_closed(LIMIT).await?;
    }
    assert!(now_s() >= at, "closed before it was due");
    ground.changed(NAME, |_| {})?;
    Ok(())
}

pub(crate) async fn one_connection_is_closed_and_a_key_is_drained(ground: &Ground) -> anyhow::Result<()> {
    let begun = ground.changed(NAME, |body| body.limits.payload += 1)?;
    ground.push(&begun, Base::Anything).await?;
    let crowd = Crowd::gather(ground).await?;
    let all = ground.connections(begun.key.as_str()).await?;
    let victim = all.iter().find(|one| one.user_name == "v1").context("v1 is connected")?;
    kick(ground.system(), &victim.server.id, victim.cid).await?;
    crowd.clients[0].wait_closed(LIMIT).await?;
    let again = kick(ground.system(), &victim.server.id, victim.cid).await;
    assert!(again.is_err(), "a connection that is gone was closed");
    let leaf = all.iter().find(|one| one.user_name == "l1").context("l1 is linked")?;
    kick(ground.system(), &leaf.server.id, leaf.cid).await?;
    crowd.leaves[0].wait_closed(LIMIT).await?;

    let key = begun.role_key(Role::Viewer).context("viewers have a key")?;
    let whose = (begun.key.as_str(), key);
    let drained = drain(ground.system(), whose, 1, (Draining::Wait, Duration::from_millis(300)), &|_| {}).await;
    let Err(DrainError::Remaining { remaining, .. }) = drained else { anyhow::bail!("{drained:?}") };
    assert_eq!(remaining.len(), 2);
    let heard = Mutex::new(Vec::new());
    let progress = |left: usize| heard.lock().expect("nobody panics").push(left);
    let drained = drain(ground.system(), whose, 1, (Draining::Wait, LIMIT), &progress);
    let leave = async {
        for client in &crowd.clients[1..3] {
            let id = client.info()["client_id"].as_u64().context("a client knows its number")?;
            kick(ground.system(), &victim.server.id, id).await?;
        }
        anyhow::Ok(())
    };
    let (drained, left) = tokio::join!(drained, leave);
    left?;
    drained?;
    assert_eq!(heard.lock().expect("nobody panics").last(), Some(&0));
    Ok(())
}

/// Each server counts and closes its own newest, so that at least as many close as was predicted.
pub(crate) async fn too_many_over_three_servers(ground: &Ground) -> anyhow::Result<()> {
    let account = ground.account("spread")?;
    ground.push(&account, Base::Absent).await?;
    let mut clients = Vec::new();
    for round in 0..2 {
        for (number, endpoint) in ground.deployment.hub_servers().iter().enumerate() {
            let identity = ground.identity("spread", Role::Viewer, &format!("v{round}{number}"))?;
            clients.push(RawClient::connect(endpoint, &identity).await?);
        }
    }
    let before = ground.connections(account.key.as_str()).await?;
    assert_eq!(before.len(), 6);
    assert_eq!(before.iter().map(|one| &one.server.name).collect::<BTreeSet<_>>().len(), 3);
    let changed = ground.changed("spread", |body| body.limits.conn = 4)?;
    let body = |record: &AccountRecord| serde_json::to_value(&record.claims.nats);
    let (old, new) = (body(&account)?, body(&changed)?);
    let plan = AccountChange { old: &old, new: &new, expires: None, now: now_s() };
    assert_eq!(blast_radius(&plan, &before).len(), 2);
    ground.push(&changed, base_of(&account)).await?;
    let settled = eventually("at most four connections", LIMIT, || async {
        let after = ground.connections(account.key.as_str()).await.map_err(|error| error.to_string())?;
        if after.len() <= 4 { Ok(()) } else { Err(format!("{} are connected", after.len())) }
    });
    Ok(settled.await?)
}
