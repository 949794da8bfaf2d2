//! The past as core tells it, against counting by hand: over the border of two partitions, from several vantages, with slots that are
//! missing, in the shared tables and in a schema of one tenant; and never another tenant's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::payload::{CheckKind, HistoryRow, Latencies, Measured, Outcome, PollerHistoryRow, Query, UptimeRow};
use bulkhead_bus::{CheckName, SiteName, Tenant};
use bulkhead_core::commit::{Shares, Writer};
use bulkhead_core::handlers::history::store::{
    LIST_HISTORY, is_cancelled, limit_time, list_history, list_poller_history, list_uptime,
};
use bulkhead_core::handlers::history::window::{Buckets, Window};
use bulkhead_core::precedence::Candidate;
use bulkhead_runtime::{now_ms, utc_of_ms};
use bulkhead_store::{Store, StoreError, TenantTx};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{onboard, tenant};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use time::OffsetDateTime;

const SLOT_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
const SITES: [&str; 2] = ["bergen", "oslo"];

struct World {
    database: TestDatabase,
    store: Store,
    /// In the shared tables.
    acme: Tenant,
    /// There as well, with checks of the same names.
    xyz: Tenant,
    /// In a schema of its own.
    apart: Tenant,
    /// The beginning of a month, in UTC: where partitions of a day and of a month end.
    border: i64,
}

fn border(now_ms: i64) -> i64 {
    let past = utc_of_ms(now_ms - 3 * HOUR_MS).unwrap();
    past.replace_day(1).unwrap().replace_time(time::Time::MIDNIGHT).unix_timestamp() * 1_000
}

/// Anything below `below`, the same for the same numbers.
fn anything(numbers: [i64; 3], below: i64) -> i64 {
    let mixed =
        numbers.iter().fold(17_i64, |mixed, number| mixed.wrapping_mul(6_364_136_223_846_793_005) ^ (number + 99));
    (mixed >> 17).rem_euclid(below)
}

/// Two hours on either side of the border, without the quarter of an hour before it.
fn rows(seed: i64, border: i64) -> Vec<Candidate> {
    let mut rows = Vec::new();
    for (check, name) in ["dns", "web"].into_iter().enumerate() {
        for (vantage, site) in SITES.into_iter().enumerate() {
            for slot in (-120..120).filter(|slot| !(-15..0).contains(slot)) {
                let drawn = |below| anything([seed, slot, (check * 2 + vantage) as i64], below);
                let outcome = match drawn(20) {
                    0..=11 => Outcome::Ok,
                    12..=15 => Outcome::Fail,
                    16 | 17 => Outcome::Error,
                    _missed => Outcome::Missed,
                };
                let latency_us = match outcome {
                    Outcome::Ok => Some(u32::try_from(drawn(5_000)).unwrap()),
                    Outcome::Fail => (drawn(2) == 0).then_some(u32::MAX),
                    Outcome::Error | Outcome::Missed => None,
                };
                let slot_ms = border + slot * SLOT_MS;
                let measured = Measured {
                    check: name.parse().unwrap(),
                    kind: CheckKind::Http,
                    slot_ms,
                    started_ms: slot_ms,
                    outcome,
                    reason: None,
                    latency_us,
                    generation: 0,
                    island: drawn(7) == 0,
                    detail: BTreeMap::new(),
                };
                let poller = if drawn(3) == 0 { "p2" } else { "p1" };
                rows.push(Candidate {
                    measured,
                    vantage: site.to_owned(),
                    poller: poller.to_owned(),
                    attested: drawn(4) > 0,
                });
            }
        }
    }
    rows
}

async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (acme, xyz) = (tenant("acme-corp"), tenant("xyz-inc"));
    let apart = Tenant { plan: "enterprise".to_owned(), ..tenant("north-bank") };
    let store = database.store().await.unwrap();
    let border = border(now_ms());
    let mut writer = Writer::new(store.clone());
    for (seed, tenant) in (1..).zip([&acme, &xyz, &apart]) {
        onboard(&provisioning, tenant).await.unwrap();
        let mut shares = Shares::default();
        shares.of(tenant).rows = rows(seed, border);
        writer.write(&shares.ready()).await.unwrap();
    }
    World { database, store, acme, xyz, apart, border }
}

impl World {
    fn rows_of(&self, tenant: &Tenant) -> Vec<Candidate> {
        let seed = (1..).zip([&self.acme, &self.xyz, &self.apart]).find(|(_, other)| other.id == tenant.id).unwrap().0;
        rows(seed, self.border)
    }

    fn asked(&self, from_min: i64, to_min: i64, bucket_s: u32) -> Query {
        let at = |min: i64| Some(self.border + min * 60_000);
        Query { since_ms: at(from_min), until_ms: at(to_min), bucket_s: Some(bucket_s), ..Query::default() }
    }

    async fn history(&self, tenant: &Tenant, site: Option<&str>, asked: &Query, limit: usize) -> Vec<HistoryRow> {
        let (check, site) = ("web".parse().unwrap(), site.map(|site| site.parse().unwrap()));
        let mut tx = self.store.begin(tenant).await.unwrap();
        let buckets = Buckets::of(asked, now_ms()).unwrap();
        list_history(&mut tx, tenant, (&check, site.as_ref()), buckets, limit).await.unwrap()
    }
}

fn counted(rows: &[&Candidate], outcome: Outcome) -> u64 {
    rows.iter().filter(|row| row.measured.outcome == outcome).count() as u64
}

/// The least value that is not less than this share of all.
fn percentile<T: Copy + Ord>(values: &[T], percent: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted[(values.len() * percent).div_ceil(100).max(1) - 1]
}

fn latencies(rows: &[&Candidate]) -> Option<Latencies> {
    let values: Vec<u32> = rows.iter().filter_map(|row| row.measured.latency_us).collect();
    let (min_us, max_us) = values.iter().copied().min().zip(values.iter().copied().max())?;
    let [p50_us, p90_us, p99_us] = [50, 90, 99].map(|percent| percentile(&values, percent));
    Some(Latencies { min_us, p50_us, p90_us, p99_us, max_us })
}

/// Rows by the beginning of their bucket, the newest first.
fn by_bucket<'a>(rows: impl Iterator<Item = &'a Candidate>, bucket_s: u32) -> Vec<(i64, Vec<&'a Candidate>)> {
    let bucket_ms = i64::from(bucket_s) * 1_000;
    let mut buckets: BTreeMap<i64, Vec<&Candidate>> = BTreeMap::new();
    for row in rows {
        buckets.entry(row.measured.slot_ms / bucket_ms * bucket_ms).or_default().push(row);
    }
    buckets.into_iter().rev().collect()
}

fn history_by_hand(tenant: &Tenant, rows: &[Candidate], site: Option<&str>, bucket_s: u32) -> Vec<HistoryRow> {
    let mut expected = Vec::new();
    let of_check = rows.iter().filter(|row| row.measured.check.as_str() == "web");
    for (begins_ms, rows) in by_bucket(of_check, bucket_s) {
        for vantage in SITES.into_iter().filter(|vantage| site.is_none_or(|site| site == *vantage)) {
            let rows: Vec<&Candidate> = rows.iter().filter(|row| row.vantage == vantage).copied().collect();
            expected.push(HistoryRow {
                tenant: tenant.slug.clone(),
                site: vantage.parse().unwrap(),
                check: "web".parse().unwrap(),
                begins_ms,
                bucket_s,
                results: rows.len() as u64,
                ok: counted(&rows, Outcome::Ok),
                fail: counted(&rows, Outcome::Fail),
                error: counted(&rows, Outcome::Error),
                missed: counted(&rows, Outcome::Missed),
                latency: latencies(&rows),
            });
        }
    }
    expected.retain(|row| row.results > 0);
    expected
}

#[tokio::test]
async fn a_history_is_what_counting_by_hand_says() {
    let world = world().await;
    for tenant in [&world.acme, &world.xyz, &world.apart] {
        let own = world.rows_of(tenant);
        for bucket_s in [60, 300, 420, 7_200, 86_400] {
            for site in [None, Some("oslo"), Some("nowhere")] {
                let shown = world.history(tenant, site, &world.asked(-120, 120, bucket_s), 1_000).await;
                let expected = history_by_hand(tenant, &own, site, bucket_s);
                assert_eq!(shown, expected, "{} {site:?} {bucket_s}", tenant.slug);
                assert!(site == Some("nowhere") || !shown.is_empty());
            }
        }
        let quarter = world.history(tenant, None, &world.asked(-120, 120, 300), 1_000).await;
        assert_eq!(quarter.len(), 2 * (48 - 3), "three buckets without results are no rows");
    }
}

#[tokio::test]
async fn a_window_is_widened_to_whole_buckets_and_its_end_is_not_in_it() {
    let world = world().await;
    let whole = world.history(&world.acme, None, &world.asked(0, 20, 600), 1_000).await;
    assert_eq!(whole.iter().map(|row| row.results).collect::<Vec<_>>(), [10; 4]);
    let inside = world.history(&world.acme, None, &world.asked(3, 11, 600), 1_000).await;
    assert_eq!(inside, whole);
}

#[tokio::test]
async fn what_is_cut_off_is_whole_buckets_and_the_next_question_goes_on() {
    let world = world().await;
    let all = world.history(&world.acme, None, &world.asked(-120, 120, 300), 1_000).await;
    let mut seen = Vec::new();
    let mut asked = world.asked(-120, 120, 300);
    loop {
        // Two vantages a bucket: the seventh row would be half a bucket.
        let page = world.history(&world.acme, None, &asked, 7).await;
        assert!(page.len() <= 6, "{}", page.len());
        let Some(oldest) = page.last().map(|row| row.begins_ms) else { break };
        seen.extend(page);
        asked.until_ms = Some(oldest);
        if asked.since_ms == asked.until_ms {
            break;
        }
    }
    assert_eq!(seen, all);
}

fn uptime_by_hand(tenant: &Tenant, rows: &[Candidate], check: &str, site: &str, window_slots: i64) -> UptimeRow {
    let is_own = |row: &&Candidate| row.measured.check.as_str() == check && row.vantage == site;
    let mut rows: Vec<&Candidate> = rows.iter().filter(is_own).collect();
    rows.sort_by_key(|row| row.measured.slot_ms);
    let (mut outages, mut run, mut longest) = (0, 0, 0);
    for row in &rows {
        match row.measured.outcome {
            Outcome::Ok => run = 0,
            Outcome::Fail => {
                outages += u64::from(run == 0);
                run += 1;
                longest = longest.max(run);
            }
            Outcome::Error | Outcome::Missed => {}
        }
    }
    let (ok, fail) = (counted(&rows, Outcome::Ok), counted(&rows, Outcome::Fail));
    UptimeRow {
        tenant: tenant.slug.clone(),
        site: site.parse().unwrap(),
        check: check.parse().unwrap(),
        ok,
        fail,
        error: counted(&rows, Outcome::Error),
        missed: counted(&rows, Outcome::Missed),
        uptime_percent: Some(100.0 * ok as f64 / (ok + fail) as f64),
        coverage_percent: Some(100.0 * (ok + fail) as f64 / window_slots as f64),
        slot_length_ms: Some(SLOT_MS),
        down_ms: Some(i64::try_from(fail).unwrap() * SLOT_MS),
        outages,
        longest_outage_ms: Some(longest * SLOT_MS),
        first_slot_ms: rows.first().map(|row| row.measured.slot_ms),
        last_slot_ms: rows.last().map(|row| row.measured.slot_ms),
    }
}

/// Equal but for how the last digit of a share is rounded.
fn assert_uptime(mut shown: UptimeRow, expected: UptimeRow) {
    for (shown, expected) in
        [(&mut shown.uptime_percent, expected.uptime_percent), (&mut shown.coverage_percent, expected.coverage_percent)]
    {
        assert!((shown.unwrap() - expected.unwrap()).abs() < 1e-9, "{shown:?} {expected:?}");
        *shown = expected;
    }
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn uptime_is_what_counting_by_hand_says() {
    let world = world().await;
    let window = Window::of(&world.asked(-120, 120, 1), now_ms()).unwrap();
    for tenant in [&world.acme, &world.xyz, &world.apart] {
        let own = world.rows_of(tenant);
        let mut tx = world.store.begin(tenant).await.unwrap();
        let now = world.border + 120 * SLOT_MS;
        let mut shown =
            list_uptime(&mut tx, tenant, &Query::default(), (window, now), 1_000).await.unwrap().into_iter();
        for (check, site) in [("dns", "bergen"), ("dns", "oslo"), ("web", "bergen"), ("web", "oslo")] {
            let expected = uptime_by_hand(tenant, &own, check, site, 240);
            assert!(expected.outages > 1 && expected.longest_outage_ms > Some(SLOT_MS), "{expected:?}");
            assert_uptime(shown.next().unwrap(), expected);
        }
        assert_eq!(shown.next(), None);
        // What has yet to come is not missing.
        let one =
            Query { check: Some("web".parse().unwrap()), site: Some("oslo".parse().unwrap()), ..Query::default() };
        let later = Window { until_ms: window.until_ms + 24 * HOUR_MS, ..window };
        let shown = list_uptime(&mut tx, tenant, &one, (later, now), 1_000).await.unwrap();
        assert_eq!(shown.len(), 1);
        assert_uptime(shown[0].clone(), uptime_by_hand(tenant, &own, "web", "oslo", 240));
        // A window without results says so, and not that all was well.
        let before = Window { since_ms: 0, until_ms: HOUR_MS };
        let shown = list_uptime(&mut tx, tenant, &one, (before, now), 1_000).await.unwrap();
        assert_eq!((shown[0].uptime_percent, shown[0].coverage_percent, shown[0].down_ms), (None, None, None));
        assert_eq!((shown[0].ok, shown[0].outages, shown[0].first_slot_ms), (0, 0, None));
    }
}

/// When each row was stored, by check and slot: varied, so that delays differ.
async fn received(superuser: &mut PgConnection, schema: &str, tenant: &Tenant) -> BTreeMap<(String, i64), i64> {
    let id = tenant.id.as_uuid();
    let vary = format!(
        "update {schema}.result set received_at = slot + interval '1 ms' * (abs(hashtext(check_name || slot)) % 90000)
         where tenant_id = '{id}'"
    );
    sqlx::raw_sql(AssertSqlSafe(vary)).execute(&mut *superuser).await.unwrap();
    let all = format!(
        "select check_name, slot, received_at from {schema}.result where tenant_id = '{id}' and vantage = 'oslo'"
    );
    let ms = |time: OffsetDateTime| i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap();
    let rows = sqlx::query(AssertSqlSafe(all)).fetch_all(superuser).await.unwrap();
    rows.iter().map(|row| ((row.get(0), ms(row.get(1))), ms(row.get(2)))).collect()
}

#[tokio::test]
async fn what_a_poller_delivered_is_what_counting_by_hand_says() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    let (oslo, p1): (SiteName, _) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    for (tenant, schema) in [(&world.acme, "shared"), (&world.xyz, "shared"), (&world.apart, "tenant_north_bank")] {
        let received = received(&mut superuser, schema, tenant).await;
        let own = world.rows_of(tenant);
        let is_own = |row: &&Candidate| row.vantage == "oslo" && row.poller == "p1";
        for bucket_s in [300, 3_600] {
            let buckets = Buckets::of(&world.asked(-120, 120, bucket_s), now_ms()).unwrap();
            let mut tx = world.store.begin(tenant).await.unwrap();
            let shown = list_poller_history(&mut tx, tenant, (&oslo, &p1), buckets, 1_000).await.unwrap();
            let expected = by_bucket(own.iter().filter(is_own), bucket_s).into_iter().map(|(begins_ms, rows)| {
                let slots: Vec<i64> = rows.iter().map(|row| row.measured.slot_ms).collect();
                let delay = |row: &&Candidate| {
                    let key = (row.measured.check.to_string(), row.measured.slot_ms);
                    received[&key] - row.measured.slot_ms
                };
                let delays: Vec<i64> = rows.iter().map(delay).collect();
                PollerHistoryRow {
                    tenant: tenant.slug.clone(),
                    site: oslo.clone(),
                    poller: Clone::clone(&p1),
                    begins_ms,
                    bucket_s,
                    results: rows.len() as u64,
                    error: counted(&rows, Outcome::Error),
                    missed: counted(&rows, Outcome::Missed),
                    islands: rows.iter().filter(|row| row.measured.island).count() as u64,
                    attested: rows.iter().filter(|row| row.attested).count() as u64,
                    first_slot_ms: slots.iter().copied().min().unwrap(),
                    last_slot_ms: slots.iter().copied().max().unwrap(),
                    delay_p50_ms: percentile(&delays, 50),
                    delay_p99_ms: percentile(&delays, 99),
                }
            });
            assert_eq!(shown, expected.collect::<Vec<_>>(), "{} {bucket_s}", tenant.slug);
        }
    }
}

#[tokio::test]
async fn what_takes_too_long_is_cancelled_and_known_as_that() {
    let world = world().await;
    let mut tx = world.store.begin(&world.acme).await.unwrap();
    limit_time(&mut tx).await.unwrap();
    let limit: String = sqlx::query_scalar("show statement_timeout").fetch_one(tx.connection()).await.unwrap();
    assert_eq!(limit, "8s");
    sqlx::query("set local statement_timeout = 50").execute(tx.connection()).await.unwrap();
    let slow = sqlx::query("select pg_sleep(60)").execute(tx.connection()).await.unwrap_err();
    assert!(is_cancelled(&StoreError::Sql { action: "sleep", source: slow }));
    let other = sqlx::query("select 1").execute(tx.connection()).await.unwrap_err();
    assert!(!is_cancelled(&StoreError::Sql { action: "go on", source: other }));
}

fn bound<'q>(
    sql: &str,
    tenant: &Tenant,
    check: &'q CheckName,
    border: i64,
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let at = |ms| utc_of_ms(ms).unwrap();
    sqlx::query(AssertSqlSafe(sql.to_owned()))
        .bind(tenant.id.as_uuid())
        .bind(check.as_str())
        .bind(at(border - 2 * HOUR_MS))
        .bind(at(border + 2 * HOUR_MS))
        .bind(None::<&str>)
        .bind(300.0)
        .bind(10_000_i64)
}

fn total(rows: &[sqlx::postgres::PgRow]) -> i64 {
    rows.iter().map(|row| row.get::<i64, _>("results")).sum()
}

/// Two tenants have a check of the same name. Row security alone keeps them apart even where the text forgets the tenant; the same text
/// without a tenant is refused, and past row security it counts both.
#[tokio::test]
async fn a_history_never_holds_another_tenants_results() {
    let world = world().await;
    let (web, border) = ("web".parse().unwrap(), world.border);
    let forgetful = LIST_HISTORY.replace("tenant_id = $1", "$1::uuid is not null");
    assert_ne!(forgetful, LIST_HISTORY);
    let own = 2 * (240 - 15);
    let mut tx = world.store.begin(&world.acme).await.unwrap();
    for sql in [LIST_HISTORY, &forgetful] {
        let rows = bound(sql, &world.acme, &web, border).fetch_all(tx.connection()).await.unwrap();
        assert_eq!(total(&rows), own, "{sql}");
    }
    // As acme, about xyz.
    let rows = bound(LIST_HISTORY, &world.xyz, &web, border).fetch_all(tx.connection()).await.unwrap();
    assert_eq!(total(&rows), 0);
    let mut bare = world.database.bare_core().await.unwrap();
    for schema in ["shared", "tenant_north_bank"] {
        let set = format!("set search_path = {schema}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut bare).await.unwrap();
        assert!(bound(LIST_HISTORY, &world.acme, &web, border).fetch_all(&mut bare).await.is_err(), "{schema}");
    }
    let mut superuser = world.database.superuser().await.unwrap();
    sqlx::raw_sql("set search_path = shared").execute(&mut superuser).await.unwrap();
    let rows = bound(&forgetful, &world.acme, &web, border).fetch_all(&mut superuser).await.unwrap();
    assert_eq!(total(&rows), 2 * own, "the control sees both");
}

/// Other checks and other days, so that there is something to leave out.
async fn crowd(superuser: &mut PgConnection, schema: &str, tenant: &Tenant, border: i64) {
    let sql = format!(
        "select {schema}.ensure_result_partition((to_timestamp({border} / 1000) at time zone 'UTC')::date + n) from generate_series(-40, 2) n;
         insert into {schema}.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, latency_us, started_at, generation,
                                      island, attested)
         select '{id}', 'check-' || c, to_timestamp({border} / 1000) + d * interval '1 day' + n * interval '5 minutes', 'oslo', 'p1', 'tcp',
                'ok', n, now(), 0, false, true
         from generate_series(1, 20) c, generate_series(-3, 1) d, generate_series(0, 287) n
         where to_timestamp({border} / 1000) + d * interval '1 day' < now() + interval '1 day';
         vacuum analyze {schema}.result",
        id = tenant.id.as_uuid()
    );
    // Vacuum is in no transaction, so that each is sent alone.
    for statement in sql.split(';') {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *superuser).await.unwrap();
    }
}

/// The partitions that a plan scans, and how.
async fn scans(tx: &mut TenantTx, sql: &str, tenant: &Tenant, border: i64) -> BTreeSet<(String, String)> {
    let at = |ms| utc_of_ms(ms).unwrap().unix_timestamp();
    let (since, until) = (at(border - 2 * HOUR_MS), at(border + 2 * HOUR_MS));
    let prepare = format!(
        "set local plan_cache_mode = force_generic_plan;
         prepare asked (uuid, text, timestamptz, timestamptz, text, float8, int8) as {sql}"
    );
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(tx.connection()).await.unwrap();
    let explain = format!(
        "explain (analyze, timing off) execute asked
         ('{}', 'web', to_timestamp({since}), to_timestamp({until}), null, 300, 1000)",
        tenant.id.as_uuid()
    );
    let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(tx.connection()).await.unwrap();
    sqlx::raw_sql("deallocate asked").execute(tx.connection()).await.unwrap();
    let scan = |line: &String| {
        let (how, rest) = line.trim().trim_start_matches("->").trim().split_once(" on result_")?;
        let how = how.split(" using ").next().unwrap_or(how);
        Some((format!("result_{}", rest.split(' ').next()?), how.to_owned()))
    };
    lines.iter().filter_map(scan).collect()
}

/// With the plan that serves any tenant and any time: two partitions, of a day or of a month, and nothing of the table itself.
#[tokio::test]
async fn a_history_reads_the_index_alone_and_only_the_windows_partitions() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    for (tenant, schema) in [(&world.acme, "shared"), (&world.apart, "tenant_north_bank")] {
        crowd(&mut superuser, schema, tenant, world.border).await;
        let mut tx = world.store.begin(tenant).await.unwrap();
        let found = scans(&mut tx, LIST_HISTORY, tenant, world.border).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|(_, how)| how == "Index Only Scan"), "{found:?}");
        // The controls: a bound that is forgotten, and a column that the index does not hold.
        let boundless = LIST_HISTORY.replace("and slot >= $3", "and $3::timestamptz is not null");
        let more = scans(&mut tx, &boundless, tenant, world.border).await;
        assert!(more.len() > found.len(), "{more:?}");
        let wide = LIST_HISTORY.replace("min(latency_us)", "min(latency_us) + count(detail)");
        let heap = scans(&mut tx, &wide, tenant, world.border).await;
        assert!(heap.iter().all(|(_, how)| how != "Index Only Scan"), "{heap:?}");
    }
}
