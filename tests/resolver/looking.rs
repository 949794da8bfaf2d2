//! What servers hold, compared with what they should.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_accounts::resolver::{
    AccountLayers, Base, Layer, Presence, compare, compare_presence, in_memory, list, pull,
};

use crate::ground::{Ground, base_of};

pub(crate) async fn layers_are_compared_and_foreign_accounts_named(ground: &Ground) -> anyhow::Result<()> {
    let account = ground.account("layered")?;
    ground.push(&account, Base::Absent).await?;
    let key = account.key.to_string();
    let layers = async |store: &str| -> anyhow::Result<AccountLayers> {
        Ok(AccountLayers {
            name: "layered".to_owned(),
            desired: Some(serde_json::to_value(&account.claims.nats)?),
            store: Some(store.to_owned()),
            disks: pull(ground.system(), 1).await?.remove(&key).unwrap_or_default().tokens,
            memories: in_memory(ground.system(), &key, 1).await?,
        })
    };
    assert_eq!(compare(&layers(&account.token).await?), []);
    let changed = ground.changed("layered", |body| body.limits.leaf = 1)?;
    ground.push(&changed, base_of(&account)).await?;
    let found = compare(&layers(&account.token).await?);
    let of = |layer: &Layer| -> Vec<&str> {
        found.iter().filter(|one| one.layer == *layer).map(|one| one.field.field.as_str()).collect()
    };
    for layer in [Layer::Disks(1), Layer::Memory("hub-1".to_owned())] {
        assert_eq!(of(&layer), ["nats.limits.leaf", "signed.iat"], "{found:?}");
    }
    assert!(of(&Layer::Store).is_empty());
    assert!(compare(&layers(&changed.token).await?).iter().all(|one| one.layer == Layer::Store));

    let listed: BTreeMap<String, BTreeSet<String>> =
        list(ground.system(), 1).await?.into_iter().map(|(server, keys)| (server.name, keys)).collect();
    let mut store = listed["hub-1"].clone();
    assert_eq!(compare_presence(&store, &listed), []);
    store.remove(&key);
    store.insert("ANOTHER".to_owned());
    let servers = vec!["hub-1".to_owned()];
    let expected = [
        Presence::Foreign { account: key, servers: servers.clone() },
        Presence::Missing { account: "ANOTHER".to_owned(), servers },
    ];
    let found = compare_presence(&store, &listed);
    assert!(found.len() == 2 && expected.iter().all(|one| found.contains(one)), "{found:?}");
    Ok(())
}
