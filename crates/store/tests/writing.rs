//! What services write that is no result, while the tenant's rows are moved or the tenant leaves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bulkhead_bus::{AccountKey, Tenant, TenantState};
use bulkhead_store::{Isolation, MoveStep, Provisioning, Service, Store, StoreError, TenantTx};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, tenant};
use bulkhead_testkit::sql::{count, run};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);

struct World {
    database: TestDatabase,
    provisioning: Provisioning,
    dispatch: Store,
    key: AccountKey,
    acme: Tenant,
}

async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let (provisioning, dispatch) =
        (database.provisioning().await.unwrap(), database.store_of(Service::Dispatch).await.unwrap());
    let (key, acme) = (account_key(), tenant("acme-corp"));
    provisioning.put_tenant(&key, &acme).await.unwrap();
    World { database, provisioning, dispatch, key, acme }
}

async fn add_check(tx: &mut TenantTx, tenant: &Tenant, name: &str) {
    let sql = format!(
        "insert into check_definition (tenant_id, name, kind, definition) values ('{}', '{name}', 'tcp', '{{}}')",
        tenant.id.as_uuid()
    );
    run(&mut tx.connection(), &sql).await.unwrap();
}

impl World {
    /// Moves the tenant to a schema of its own, in another task, and says each step.
    async fn begin_move(&self) -> (tokio::task::JoinHandle<Isolation>, mpsc::UnboundedReceiver<MoveStep>) {
        let planned = Tenant { plan: "enterprise".to_owned(), ..self.acme.clone() };
        self.provisioning.put_tenant(&self.key, &planned).await.unwrap();
        let (told, said) = mpsc::unbounded_channel();
        let provisioning = self.provisioning.clone();
        let moving = tokio::spawn(async move {
            let moved = provisioning.move_tenant(&planned, &|step| told.send(step).unwrap_or_default()).await;
            moved.unwrap().unwrap().to
        });
        (moving, said)
    }

    /// Until so many wait for a lock that somebody else holds.
    async fn wait_for_waiting(&self, expected: i64) {
        let mut superuser = self.database.superuser().await.unwrap();
        let sql = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        let waited = tokio::time::timeout(LIMIT, async { while count(&mut superuser, sql).await < expected {} });
        waited.await.expect("somebody waits");
    }

    async fn checks_in(&self, schema: &str) -> i64 {
        count(&mut self.database.superuser().await.unwrap(), &format!("select count(*) from {schema}.check_definition"))
            .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_writes_during_a_move_is_never_lost() {
    let world = world().await;
    let mut early = world.dispatch.begin_writing(&world.acme).await.unwrap();
    add_check(&mut early, &world.acme, "early").await;
    let (moving, _said) = world.begin_move().await;
    world.wait_for_waiting(1).await;
    // Whoever comes meanwhile waits for the move, and then writes where the rows are.
    let (dispatch, acme) = (world.dispatch.clone(), world.acme.clone());
    let late = tokio::spawn(async move {
        let mut late = dispatch.begin_writing(&acme).await.unwrap();
        add_check(&mut late, &acme, "late").await;
        let isolation = late.isolation();
        late.commit().await.unwrap();
        isolation
    });
    world.wait_for_waiting(2).await;
    early.commit().await.unwrap();
    assert_eq!(moving.await.unwrap(), Isolation::Schema);
    assert_eq!(late.await.unwrap(), Isolation::Schema);
    assert_eq!((world.checks_in("tenant_acme_corp").await, world.checks_in("shared").await), (2, 0));
}

/// Control: without the lock of those who write, what is stored behind the move is gone with the old place.
#[tokio::test(flavor = "multi_thread")]
async fn control_what_is_written_as_if_it_were_read_is_lost() {
    let world = world().await;
    let mut late = world.dispatch.begin(&world.acme).await.unwrap();
    add_check(&mut late, &world.acme, "late").await;
    let (moving, mut said) = world.begin_move().await;
    while said.recv().await != Some(MoveStep::Switched) {}
    late.commit().await.unwrap();
    assert_eq!(moving.await.unwrap(), Isolation::Schema);
    assert_eq!((world.checks_in("tenant_acme_corp").await, world.checks_in("shared").await), (0, 0));
}

/// As if counters stopped them too: who writes is waited for, and nobody writes afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_for_a_tenant_that_leaves() {
    let world = world().await;
    let mut early = world.dispatch.begin_writing(&world.acme).await.unwrap();
    add_check(&mut early, &world.acme, "early").await;
    let (provisioning, acme) = (world.provisioning.clone(), world.acme.clone());
    let closing = tokio::spawn(async move { provisioning.set_tenant_state(&acme, TenantState::Offboarding).await });
    world.wait_for_waiting(1).await;
    assert!(!closing.is_finished(), "somebody writes still");
    early.commit().await.unwrap();
    closing.await.unwrap().unwrap();
    let refused = world.dispatch.begin_writing(&world.acme).await.unwrap_err();
    assert!(matches!(refused, StoreError::TenantClosed { .. }), "{refused}");
    world.dispatch.begin(&world.acme).await.expect("reading goes on");
    assert_eq!(world.provisioning.purge_tenant(&world.acme).await.unwrap()["check_definition"], 1);
    world.provisioning.forget_tenant(&world.acme).await.unwrap();
    let refused = world.dispatch.begin_writing(&world.acme).await.unwrap_err();
    assert!(matches!(refused, StoreError::TenantClosed { .. }), "who is not on the list: {refused}");
}
