//! Whoever slept while another took over writes nothing, at whatever line it slept.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bulkhead_bus::Tenant;
use bulkhead_bus::payload::Probe;
use bulkhead_poller_dispatch::store::{
    Kept, claim_leadership, commit_plan, give_up_leadership, lock_state, read_open, write_turn,
};
use bulkhead_poller_dispatch::turn::{Begun, Turn};
use bulkhead_store::{Service, Store};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{enterprise, onboard, tenant};

fn one_more() -> Turn {
    let probe = Probe {
        name: "web".parse().unwrap(),
        kind: "tcp".to_owned(),
        target: "h:1".to_owned(),
        interval_s: 10,
        timeout_ms: 900,
        retries: 0,
        options: BTreeMap::new(),
    };
    let (check, site, poller) = (probe.name.clone(), "oslo".parse().unwrap(), Some("p1".parse().unwrap()));
    let begun = Begun { check, site, poller, probe, revision: 1, from_ms: 0, owed_from_ms: None };
    Turn { begun: vec![begun], ..Turn::default() }
}

/// As a plan does; whether it was committed.
async fn plan(store: &Store, tenant: &Tenant, (holder, epoch): (&str, i64), meanwhile: impl AsyncFnOnce()) -> bool {
    let mut tx = store.begin(tenant).await.unwrap();
    let kept = lock_state(&mut tx, tenant).await.unwrap();
    let generation = kept.generation + 1;
    write_turn(&mut tx, tenant, generation, &one_more()).await.unwrap();
    let next = Kept { generation, epoch, ..kept };
    meanwhile().await;
    commit_plan(tx, tenant, holder, &next).await.unwrap()
}

async fn generations(store: &Store, tenant: &Tenant) -> Vec<i64> {
    let mut tx = store.begin(tenant).await.unwrap();
    let mut open: Vec<i64> = read_open(&mut tx, tenant).await.unwrap().iter().map(|row| row.generation).collect();
    open.sort_unstable();
    open
}

#[tokio::test]
async fn a_plan_is_stored_under_the_epoch_of_now_or_not_at_all() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let store = database.store_of(Service::Dispatch).await.unwrap();
    for own in [tenant("xyz-inc"), enterprise("acme-corp")] {
        onboard(&provisioning, &own).await.unwrap();
        let first = claim_leadership(&store, "one").await.unwrap().unwrap();
        assert_eq!(claim_leadership(&store, "two").await.unwrap(), None, "there is one");
        assert_eq!(claim_leadership(&store, "one").await.unwrap(), Some(first), "it goes on");
        assert!(plan(&store, &own, ("one", first), async || {}).await, "control");
        assert_eq!(generations(&store, &own).await, [1]);

        // It sleeps in the middle of a transaction, and another takes over.
        let other = store.clone();
        let taken_over = async || {
            give_up_leadership(&other, "one").await.unwrap();
            assert_eq!(claim_leadership(&other, "two").await.unwrap(), Some(first + 1));
        };
        assert!(!plan(&store, &own, ("one", first), taken_over).await);
        // It sleeps before, and the other has planned meanwhile, or not yet.
        assert!(!plan(&store, &own, ("one", first), async || {}).await);
        assert!(plan(&store, &own, ("two", first + 1), async || {}).await, "control");
        assert!(!plan(&store, &own, ("one", first), async || {}).await);
        assert!(!plan(&store, &own, ("one", first + 1), async || {}).await, "another's epoch");
        assert_eq!(generations(&store, &own).await, [1, 2]);
        give_up_leadership(&store, "two").await.unwrap();
    }
}
