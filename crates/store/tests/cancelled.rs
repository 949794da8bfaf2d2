//! Thousands of transactions of tenants of both strategies that are dropped wherever they happen to be, while others read: what
//! was not committed is not there, and no connection remembers whose it was. The control does the same without the store.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ops::DerefMut;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bulkhead_bus::Tenant;
use bulkhead_store::{Connections, Service, Store, TenantTx};
use bulkhead_testkit::database::{enterprise, onboard, tenant};
use bulkhead_testkit::sql::{count, run};
use bulkhead_testkit::{LIMIT, TestDatabase, eventually};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres};
use tokio::task::JoinSet;
use uuid::Uuid;

const SEED: u64 = 6;
const TRANSACTIONS: usize = 4_000;
/// For the control, which is to leak soon.
const NAIVE_TRANSACTIONS: usize = 400;
const AT_ONCE: usize = 16;
const WATCHERS: usize = 2;
const POOL: Connections = Connections { shared: 4, own_schemas: 4 };
/// In one phase, before a transaction is dropped: beginning waits for a connection as well.
const WAITS_MOST: usize = 2;
const BEGINNING_WAITS_MOST: usize = 6;

/// How far a transaction came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Beginning,
    Reading,
    Writing,
    Committing,
    Committed,
}

const PHASES: [Phase; 5] = [Phase::Beginning, Phase::Reading, Phase::Writing, Phase::Committing, Phase::Committed];

/// The store, or what somebody would do who does not know of it.
enum Pool {
    Guarded(Box<Store>),
    Naive(PgPool),
}

enum Turn {
    Guarded(TenantTx),
    Naive(PoolConnection<Postgres>),
}

impl Pool {
    async fn begin(&self, tenant: &Tenant) -> Turn {
        match self {
            Self::Guarded(store) => Turn::Guarded(store.begin(tenant).await.unwrap()),
            Self::Naive(pool) => {
                let mut connection = pool.acquire().await.unwrap();
                let (schema, role) = place_of(tenant);
                let name = format!(
                    "set app.tenant_id = '{}'; set search_path = {schema}; set role {role}",
                    tenant.id.as_uuid()
                );
                run(&mut connection, &name).await.unwrap();
                Turn::Naive(connection)
            }
        }
    }
}

impl Turn {
    fn connection(&mut self) -> Box<dyn DerefMut<Target = PgConnection> + Send + '_> {
        match self {
            Self::Guarded(tx) => Box::new(tx.connection()),
            Self::Naive(connection) => Box::new(&mut **connection),
        }
    }

    async fn commit(self) {
        match self {
            Self::Guarded(tx) => tx.commit().await.unwrap(),
            Self::Naive(_) => {}
        }
    }
}

fn place_of(tenant: &Tenant) -> (String, String) {
    if tenant.plan == "enterprise" {
        let schema = format!("tenant_{}", tenant.slug).replace('-', "_");
        (schema.clone(), format!("{schema}_core"))
    } else {
        ("shared".to_owned(), "bulkhead_core".to_owned())
    }
}

/// Drops a transaction after it has waited so many times in a phase or later: where it waits for the database, or just before it
/// hears of it.
struct Dropped<'a, F> {
    inner: Pin<Box<F>>,
    phase: &'a Mutex<Phase>,
    from: Phase,
    waits_left: usize,
    hears_last: bool,
}

impl<F: Future<Output = ()>> Future for Dropped<'_, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waits_left == 0 || self.inner.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if *self.phase.lock().unwrap() >= self.from {
            self.waits_left -= 1;
        }
        if self.waits_left == 0 && !self.hears_last { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// What was seen that must not be, and what must be stored in the end.
#[derive(Debug, Default)]
struct Seen {
    leaks: Mutex<Vec<String>>,
    committed: Mutex<BTreeSet<String>>,
    /// Cancelled while the database was told to commit: either is right.
    undecided: Mutex<BTreeSet<String>>,
    ended: [AtomicUsize; PHASES.len()],
    looked: AtomicUsize,
    done: AtomicUsize,
}

impl Seen {
    fn leak(&self, what: String) {
        self.leaks.lock().unwrap().push(what);
    }

    fn ended(&self, phase: Phase) -> usize {
        self.ended[phase as usize].load(Ordering::Relaxed)
    }

    /// Reads as `tenant`, and minds every row.
    async fn look(&self, connection: &mut PgConnection, tenant: &Tenant) {
        let owners = "select tenant_id from site union all select tenant_id from check_state";
        let owners: Vec<Uuid> = sqlx::query_scalar(owners).fetch_all(&mut *connection).await.unwrap();
        if owners.is_empty() || owners.iter().any(|owner| *owner != tenant.id.as_uuid()) {
            self.leak(format!("{} has read rows of {owners:?}", tenant.slug));
        }
        self.looked.fetch_add(1, Ordering::Relaxed);
    }
}

/// Transactions that are under way, and whoever looks meanwhile.
struct Run {
    pool: Pool,
    tenants: Vec<Tenant>,
    transactions: usize,
    /// How many are still to be begun, and what comes of each.
    list: Mutex<(usize, fastrand::Rng)>,
    seen: Seen,
}

impl Run {
    async fn work(&self, tenant: &Tenant, name: &str, phase: &Mutex<Phase>) {
        let enter = |next| *phase.lock().unwrap() = next;
        let mut turn = self.pool.begin(tenant).await;
        enter(Phase::Reading);
        self.seen.look(&mut turn.connection(), tenant).await;
        enter(Phase::Writing);
        let sql = "insert into check_state (tenant_id, check_name, vantage, poller, kind, slot, outcome, since)
                   values ($1, $2, 'oslo', 'p1', 'tcp', now(), 'ok', now())";
        sqlx::query(sql).bind(tenant.id.as_uuid()).bind(name).execute(&mut **turn.connection()).await.unwrap();
        enter(Phase::Committing);
        turn.commit().await;
        enter(Phase::Committed);
    }

    /// Takes transactions off the list until there are none.
    async fn worker(self: Arc<Self>) {
        loop {
            let (number, tenant, from, waits_left, hears_last) = {
                let (left, random) = &mut *self.list.lock().unwrap();
                let Some(number) = left.checked_sub(1) else { return };
                *left = number;
                let tenant = random.choice(&self.tenants).unwrap();
                let from = random.choice(PHASES).unwrap();
                let most = if from == Phase::Beginning { BEGINNING_WAITS_MOST } else { WAITS_MOST };
                (number, tenant, from, random.usize(1..=most), random.bool())
            };
            let (name, phase) = (format!("check-{number}"), Mutex::new(Phase::Beginning));
            let inner = Box::pin(self.work(tenant, &name, &phase));
            Dropped { inner, phase: &phase, from, waits_left, hears_last }.await;
            let phase = *phase.lock().unwrap();
            self.seen.ended[phase as usize].fetch_add(1, Ordering::Relaxed);
            match phase {
                Phase::Committed => self.seen.committed.lock().unwrap().insert(name),
                Phase::Committing => self.seen.undecided.lock().unwrap().insert(name),
                Phase::Beginning | Phase::Reading | Phase::Writing => false,
            };
            self.seen.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks as every tenant, and as nobody, for as long as there are transactions.
    async fn watcher(self: Arc<Self>) {
        for tenant in self.tenants.iter().cycle() {
            if self.seen.done.load(Ordering::Relaxed) >= self.transactions {
                return;
            }
            let mut turn = self.pool.begin(tenant).await;
            self.seen.look(&mut turn.connection(), tenant).await;
            drop(turn);
            match &self.pool {
                Pool::Guarded(store) => {
                    look_as_nobody(&mut store.platform().await.unwrap().connection(), &self.seen).await
                }
                Pool::Naive(pool) => look_as_nobody(&mut pool.acquire().await.unwrap(), &self.seen).await,
            }
        }
    }
}

async fn look_as_nobody(connection: &mut PgConnection, seen: &Seen) {
    let sql = "select nullif(current_setting('app.tenant_id', true), ''),
                      nullif(current_user, 'bulkhead_core')::text,
                      nullif(current_setting('search_path'), '\"$user\", public')";
    let found: (Option<String>, Option<String>, Option<String>) =
        sqlx::query_as(sql).fetch_one(&mut *connection).await.unwrap();
    if found != (None, None, None) {
        seen.leak(format!("a connection has {found:?} left"));
    }
    if run(connection, "select from shared.site").await.is_ok() {
        seen.leak("a connection for nobody has read sites".to_owned());
    }
}

/// Runs the transactions, and returns what was seen of them.
async fn cancel_many(pool: Pool, tenants: &[Tenant], transactions: usize) -> Seen {
    let list = Mutex::new((transactions, fastrand::Rng::with_seed(SEED)));
    let run = Arc::new(Run { pool, tenants: tenants.to_vec(), transactions, list, seen: Seen::default() });
    let mut tasks = JoinSet::new();
    (0..AT_ONCE).for_each(|_| drop(tasks.spawn(Arc::clone(&run).worker())));
    (0..WATCHERS).for_each(|_| drop(tasks.spawn(Arc::clone(&run).watcher())));
    tasks.join_all().await;
    Arc::into_inner(run).unwrap().seen
}

/// Checks that are stored and should not be, and those that should and are not.
async fn stored_wrongly(superuser: &mut PgConnection, tenants: &[Tenant], seen: &Seen) -> (Vec<String>, Vec<String>) {
    let places: BTreeSet<String> = tenants.iter().map(|tenant| place_of(tenant).0).collect();
    let mut stored: BTreeSet<String> = BTreeSet::new();
    for place in places {
        let sql = format!("select check_name from {place}.check_state");
        let names: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *superuser).await.unwrap();
        stored.extend(names);
    }
    let (committed, undecided) = (seen.committed.lock().unwrap(), seen.undecided.lock().unwrap());
    let planted = stored.iter().filter(|name| !committed.contains(*name) && !undecided.contains(*name));
    (planted.cloned().collect(), committed.difference(&stored).cloned().collect())
}

/// Both pools hold no transaction, and every connection of them is nobody's.
async fn nothing_is_left(store: &Store, superuser: &tokio::sync::Mutex<PgConnection>, tenants: &[Tenant], seen: &Seen) {
    eventually("connections without a transaction", LIMIT, || async {
        let open = "select count(*) from pg_stat_activity
                    where application_name = 'core' and (state <> 'idle' or xact_start is not null)";
        let mut superuser = superuser.lock().await;
        match count(&mut superuser, open).await {
            0 => Ok(()),
            open => Err(format!("{open} are open")),
        }
    })
    .await
    .unwrap();
    // All of one pool at once, so that none is looked at twice.
    let mut shared = Vec::new();
    for _ in 0..POOL.shared {
        let mut connection = store.platform().await.unwrap();
        look_as_nobody(&mut connection.connection(), seen).await;
        shared.push(connection);
    }
    drop(shared);
    // Those for schemas are had for a tenant only: whoever is another tenant's role already may not look where the rows are,
    // and does not begin.
    let apart = tenants.iter().filter(|tenant| tenant.plan == "enterprise").cycle();
    let mut own = Vec::new();
    for tenant in apart.take(POOL.own_schemas.try_into().unwrap()) {
        let mut tx = store.begin(tenant).await.unwrap();
        seen.look(&mut tx.connection(), tenant).await;
        own.push(tx);
    }
}

async fn start() -> (TestDatabase, Vec<Tenant>) {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let mut tenants = Vec::new();
    for number in 0..4 {
        tenants.extend([tenant(&format!("free-{number}")), enterprise(&format!("apart-{number}"))]);
    }
    for tenant in &tenants {
        onboard(&provisioning, tenant).await.unwrap();
    }
    (database, tenants)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_cancelled_transactions_leave_nothing_behind() {
    let (database, tenants) = start().await;
    let store = Store::connect(&database.core_url(), Service::Core, POOL).await.unwrap();
    let pool = Pool::Guarded(Box::new(store.clone()));
    let seen = cancel_many(pool, &tenants, TRANSACTIONS).await;
    let superuser = tokio::sync::Mutex::new(database.superuser().await.unwrap());
    nothing_is_left(&store, &superuser, &tenants, &seen).await;
    assert_eq!(*seen.leaks.lock().unwrap(), Vec::<String>::new());
    let mut superuser = superuser.into_inner();
    let (planted, lost) = stored_wrongly(&mut superuser, &tenants, &seen).await;
    assert_eq!((planted, lost), (vec![], vec![]));
    // A good part ended in each phase, or this has shown nothing.
    let ended = PHASES.map(|phase| seen.ended(phase));
    assert_eq!(ended.iter().sum::<usize>(), TRANSACTIONS);
    assert!(ended.iter().all(|ended| *ended > TRANSACTIONS / 50), "{ended:?}");
    assert!(seen.ended(Phase::Committed) < TRANSACTIONS * 2 / 3, "{ended:?}");
    assert!(seen.looked.load(Ordering::Relaxed) > TRANSACTIONS / 10, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn control_a_pool_without_the_store_leaks_and_is_seen_to() {
    let (database, tenants) = start().await;
    let pool = PgPoolOptions::new().max_connections(POOL.shared).connect(&database.core_url()).await.unwrap();
    let pool = Pool::Naive(pool);
    let seen = cancel_many(pool, &tenants, NAIVE_TRANSACTIONS).await;
    let leaks = seen.leaks.lock().unwrap().clone();
    assert!(leaks.iter().any(|leak| leak.contains("left")), "the tenant of a connection stays: {leaks:?}");
    assert!(leaks.iter().any(|leak| leak.contains("has read sites")), "and shows its rows to nobody: {leaks:?}");
    let mut superuser = database.superuser().await.unwrap();
    let (planted, _) = stored_wrongly(&mut superuser, &tenants, &seen).await;
    assert!(!planted.is_empty(), "what was cancelled is stored");
}
