//! The end of a tenant, and of its pollers and sites, against a real database.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bulkhead_bus::{AccountKey, Tenant, TenantState};
use bulkhead_store::{PollerState, Provisioning, ProvisioningError, RowCounts, SiteRecord, Store, WithPollers};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, batch_key, tenant};
use bulkhead_testkit::sql::{insert_checks, run};

/// More than one batch of a purge.
const RESULTS_A_DAY: u64 = 5_003;

struct World {
    database: TestDatabase,
    provisioning: Provisioning,
    store: Store,
    keys: [AccountKey; 2],
    acme: Tenant,
    xyz: Tenant,
}

/// Every table of both tenants has rows, results of two days among them.
async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let (provisioning, store) = (database.provisioning().await.unwrap(), database.store().await.unwrap());
    let (keys, acme, xyz) = ([account_key(), account_key()], tenant("acme-corp"), tenant("xyz-inc"));
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "select shared.ensure_result_partition(current_date - n) from generate_series(0, 1) n")
        .await
        .unwrap();
    let (oslo, p1) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    for (key, tenant) in keys.iter().zip([&acme, &xyz]) {
        provisioning.put_tenant(key, tenant).await.unwrap();
        provisioning.put_site(tenant, &oslo).await.unwrap();
        provisioning.put_poller(tenant, &oslo, &p1, &batch_key()).await.unwrap();
        let id = tenant.id.as_uuid();
        let fill = format!(
            "insert into shared.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at,
               generation, island, attested)
             select '{id}', 'web-' || n, current_date - day, 'oslo', 'p1', 'tcp', 'ok', now(), 0, false, true
             from generate_series(1, {RESULTS_A_DAY}) n, generate_series(0, 1) day;
             insert into shared.check_state (tenant_id, check_name, vantage, poller, kind, slot, outcome, since)
             values ('{id}', 'web', 'oslo', 'p1', 'tcp', now(), 'ok', now());
             insert into shared.poller_seen (tenant_id, site, poller, last_batch_at)
             values ('{id}', 'oslo', 'p1', now());
             insert into shared.dead_letter (tenant_id, digest, row_index, reason, detail, stream, subject, headers,
               payload, delivered) values ('{id}', 'd', -1, 'r', 'd', 's', 's', 'h', 'p', 1);
             insert into shared.ingest_count values ('{id}', 1, 2, 0, 0, 1);
             insert into platform.unclaimed_dead_letter values ('{id}', '{key}', 'r', 's', 'h', 'p')"
        );
        run(&mut superuser, &fill).await.unwrap();
        run(&mut superuser, &insert_checks(tenant, "shared", "web")).await.unwrap();
    }
    World { database, provisioning, store, keys, acme, xyz }
}

fn total(counts: &RowCounts) -> u64 {
    counts.values().sum()
}

#[tokio::test]
async fn a_tenant_that_leaves_takes_every_row_with_it_and_no_others() {
    let world = world().await;
    let (provisioning, acme, xyz) = (&world.provisioning, &world.acme, &world.xyz);
    let before = provisioning.row_counts(acme).await.unwrap();
    assert_eq!((before["result"], total(&before)), (2 * RESULTS_A_DAY, 2 * RESULTS_A_DAY + 13));
    let refused = provisioning.purge_tenant(acme).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::StillOpen { .. }), "{refused}");
    let refused = provisioning.forget_tenant(acme).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::StillOpen { .. }), "{refused}");

    provisioning.set_tenant_state(acme, TenantState::Offboarding).await.unwrap();
    let refused = provisioning.forget_tenant(acme).await.unwrap_err();
    assert!(matches!(&refused, ProvisioningError::RowsLeft { left, .. } if left.contains("result")), "{refused}");
    assert_eq!(provisioning.purge_tenant(acme).await.unwrap(), before);
    assert_eq!(total(&provisioning.purge_tenant(acme).await.unwrap()), 0, "a second purge has nothing to do");
    provisioning.set_tenant_state(acme, TenantState::Offboarded).await.unwrap();
    provisioning.forget_tenant(acme).await.unwrap();
    provisioning.forget_tenant(acme).await.unwrap();
    assert_eq!(provisioning.tenant_by_account(&world.keys[0]).await.unwrap(), None);
    assert_eq!(provisioning.row_counts(xyz).await.unwrap(), before, "the other tenant lost rows");
}

#[tokio::test]
async fn a_purge_that_was_cut_short_goes_on() {
    let world = world().await;
    let (provisioning, acme) = (&world.provisioning, &world.acme);
    let before = provisioning.row_counts(acme).await.unwrap();
    provisioning.set_tenant_state(acme, TenantState::Offboarding).await.unwrap();
    let mut superuser = world.database.superuser().await.unwrap();
    // The second batch of a day fails.
    let fuse = format!(
        "create sequence public.fuse; grant usage on sequence public.fuse to public; grant usage on schema public to public;
         create function public.burn() returns trigger language plpgsql as $$
         begin if nextval('public.fuse') > {} then raise exception 'cut'; end if; return old; end $$;
         create trigger burn before delete on shared.result for each row execute function public.burn()",
        RESULTS_A_DAY - 1
    );
    run(&mut superuser, &fuse).await.unwrap();
    provisioning.purge_tenant(acme).await.unwrap_err();
    run(&mut superuser, "drop trigger burn on shared.result").await.unwrap();
    let rest = provisioning.purge_tenant(acme).await.unwrap();
    assert!(rest["result"] > 0 && rest["result"] < before["result"], "{rest:?}");
    provisioning.forget_tenant(acme).await.unwrap();
}

#[tokio::test]
async fn a_slug_that_is_used_again_opens_nothing_old() {
    let world = world().await;
    let (provisioning, acme) = (&world.provisioning, &world.acme);
    let taken = provisioning.put_tenant(&account_key(), &tenant("acme-corp")).await.unwrap_err();
    assert!(matches!(taken, ProvisioningError::SlugTaken { .. }), "{taken}");
    provisioning.set_tenant_state(acme, TenantState::Offboarding).await.unwrap();
    provisioning.purge_tenant(acme).await.unwrap();
    provisioning.forget_tenant(acme).await.unwrap();
    // What nobody should have left behind: even that stays the old tenant's.
    let plant = format!("insert into shared.site (tenant_id, name) values ('{}', 'old')", acme.id.as_uuid());
    run(&mut world.database.superuser().await.unwrap(), &plant).await.unwrap();

    let again = tenant("acme-corp");
    provisioning.put_tenant(&account_key(), &again).await.unwrap();
    assert_ne!(again.id, acme.id);
    assert_eq!(total(&provisioning.row_counts(&again).await.unwrap()), 0);
    let sites = async |of: &Tenant| -> i64 {
        let mut tx = world.store.begin(of).await.unwrap();
        sqlx::query_scalar("select count(*) from site").fetch_one(tx.connection()).await.unwrap()
    };
    assert_eq!((sites(&again).await, sites(acme).await), (0, 1), "control: the old row is there");
}

#[tokio::test]
async fn the_state_says_since_when_and_writing_a_tenant_does_not_bring_it_back() {
    let world = world().await;
    let (provisioning, acme, key) = (&world.provisioning, &world.acme, &world.keys[0]);
    let suspended = provisioning.set_tenant_state(acme, TenantState::Suspended).await.unwrap();
    assert!(suspended.state == TenantState::Suspended && suspended.state_since_ms > 1_600_000_000_000);
    let again = provisioning.set_tenant_state(acme, TenantState::Suspended).await.unwrap();
    assert_eq!(again, suspended, "said twice, it is still since the first time");
    provisioning.set_tenant_state(acme, TenantState::Offboarding).await.unwrap();
    provisioning.put_tenant(key, acme).await.unwrap();
    let found = provisioning.tenant_by_slug(&acme.slug).await.unwrap().unwrap();
    assert_eq!(found.state, TenantState::Offboarding);
    let closed = Tenant { state: TenantState::Offboarded, ..acme.clone() };
    let refused = provisioning.put_tenant(key, &closed).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::WrittenClosed { .. }), "{refused}");
    let refused = provisioning.set_tenant_state(&tenant("nobody"), TenantState::Suspended).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::NoTenant { .. }), "{refused}");
}

#[tokio::test]
async fn every_table_of_tenants_is_purged() {
    let world = world().await;
    let sql = "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
               join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
               where n.nspname = 'shared' and c.relkind in ('r', 'p') and not c.relispartition order by 1";
    let tables: Vec<String> =
        sqlx::query_scalar(sql).fetch_all(&mut world.database.superuser().await.unwrap()).await.unwrap();
    let mut purged: Vec<&str> = world.provisioning.row_counts(&world.acme).await.unwrap().into_keys().collect();
    purged.retain(|table| *table != "unclaimed_dead_letter");
    assert_eq!(tables, purged, "a new table needs a place in the purge");
}

#[tokio::test]
async fn pollers_are_listed_revoked_and_removed_and_a_site_in_use_stays() {
    let world = world().await;
    let (provisioning, acme) = (&world.provisioning, &world.acme);
    let (oslo, p1, p2, key) = ("oslo".parse().unwrap(), "p1".parse().unwrap(), "p2".parse().unwrap(), batch_key());
    provisioning.put_poller(acme, &oslo, &p2, &key).await.unwrap();
    provisioning.set_poller_state(acme, (&oslo, &p1), PollerState::Revoked).await.unwrap();
    let states = async || {
        let pollers = provisioning.pollers(acme).await.unwrap();
        pollers.iter().map(|poller| (poller.poller.to_string(), poller.state)).collect::<Vec<_>>()
    };
    let expected = [("p1".to_owned(), PollerState::Revoked), ("p2".to_owned(), PollerState::Active)];
    assert_eq!(states().await, expected);
    provisioning.put_poller(acme, &oslo, &p1, &batch_key()).await.unwrap();
    assert_eq!(states().await, expected, "another key brings nobody back");
    let refused = provisioning.set_poller_state(acme, (&p1.as_str().parse().unwrap(), &p1), PollerState::Active).await;
    assert!(matches!(refused, Err(ProvisioningError::NoPoller { .. })), "{refused:?}");

    assert_eq!(provisioning.sites(acme).await.unwrap(), [SiteRecord { site: oslo.clone(), pollers: 2 }]);
    let refused = provisioning.remove_site(acme, &oslo, WithPollers::Refuse).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::SiteInUse { pollers: 2, .. }), "{refused}");
    assert_eq!(states().await.len(), 2, "refused, and pollers are gone all the same");
    provisioning.remove_poller(acme, &oslo, &p2).await.unwrap();
    provisioning.remove_poller(acme, &oslo, &p2).await.unwrap();
    provisioning.put_poller(&world.xyz, &oslo, &p2, &key).await.expect("the key of a poller that went is free");
    assert_eq!(provisioning.remove_site(acme, &oslo, WithPollers::Remove).await.unwrap(), 1);
    assert!(provisioning.sites(acme).await.unwrap().is_empty());
    assert_eq!(provisioning.sites(&world.xyz).await.unwrap(), [SiteRecord { site: oslo, pollers: 2 }]);
}
