//! What a share of many slots says of its checks, beside the same rows one after the other: two statements write them.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::payload::{CheckKind, Measured, Outcome};
use bulkhead_core::commit::{Shares, Writer};
use bulkhead_core::precedence::Candidate;
use bulkhead_core::store::Counts;
use bulkhead_runtime::now_ms;
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{onboard, tenant};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sqlx::Row;

/// Rows of two checks at two vantages, one at most of each slot, in the order of their slots.
fn any_share() -> impl Strategy<Value = BTreeMap<(i64, bool, bool), (usize, i64)>> {
    proptest::collection::btree_map((0_i64..6, any::<bool>(), any::<bool>()), (0_usize..4, 0_i64..3), 1..12)
}

#[tokio::test]
async fn a_share_at_once_says_what_its_rows_say_one_after_the_other() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (acme, xyz) = (tenant("acme-corp"), tenant("xyz-inc"));
    for tenant in [&acme, &xyz] {
        onboard(&provisioning, tenant).await.unwrap();
    }
    let mut superuser = database.superuser().await.unwrap();
    let mut writer = Writer::new(database.store().await.unwrap());
    let first_slot = now_ms() / 10_000 * 10_000 - 600_000;
    let kept =
        "select array(select concat_ws(' ', check_name, vantage, poller, slot, outcome, reason, latency_us, since)
                             from shared.check_state where tenant_id = $1 order by check_name, vantage),
                       array(select concat_ws(' ', check_name, vantage, slot, outcome, generation, revision)
                             from shared.result where tenant_id = $1 order by check_name, vantage, slot)";
    let outcomes = [Outcome::Ok, Outcome::Fail, Outcome::Error, Outcome::Missed];
    let mut runner = TestRunner::deterministic();
    let mut sizes = BTreeSet::new();
    for round in 0..60 {
        let share = any_share().new_tree(&mut runner).unwrap().current();
        let rows = share.iter().map(|((slot, is_web, is_oslo), (outcome, generation))| {
            let slot_ms = first_slot + (round / 3 + slot) * 10_000;
            let measured = Measured {
                check: if *is_web { "web" } else { "dns" }.parse().unwrap(),
                kind: CheckKind::Http,
                slot_ms,
                started_ms: slot_ms + 3,
                outcome: outcomes[*outcome],
                reason: None,
                latency_us: Some(u32::try_from(round).unwrap()),
                generation: *generation,
                island: false,
                detail: BTreeMap::new(),
            };
            let vantage = if *is_oslo { "oslo" } else { "bergen" }.to_owned();
            Candidate { measured, vantage, poller: "p1".to_owned(), attested: true }
        });
        let rows: Vec<Candidate> = rows.collect();
        sizes.insert(rows.len());
        let mut shares = Shares::default();
        shares.of(&acme).rows = rows.clone();
        let at_once = writer.write(&shares.ready()).await.unwrap();
        let mut one_by_one = Counts::default();
        for row in rows {
            let mut shares = Shares::default();
            shares.of(&xyz).rows.push(row);
            one_by_one.add(writer.write(&shares.ready()).await.unwrap());
        }
        assert_eq!(at_once, one_by_one, "{share:?}");
        let mut found = Vec::new();
        for tenant in [&acme, &xyz] {
            let row = sqlx::query(kept).bind(tenant.id.as_uuid()).fetch_one(&mut superuser).await.unwrap();
            found.push((row.get::<Vec<String>, _>(0), row.get::<Vec<String>, _>(1)));
        }
        assert_eq!(found[0], found[1], "{share:?}");
    }
    assert!(sizes.len() > 5, "{sizes:?}");
}
