//! The transaction that names its tenant first. It goes where the tenant's rows are, whatever whoever begins it believes:
//! the database says so, in the transaction.

use bulkhead_bus::{Tenant, TenantState};
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row, Transaction};

use crate::isolation::{Isolation, Place, isolation_of};
use crate::own_pool::OwnPool;
use crate::pooler::{Link, Pooler};
use crate::service::Service;
use crate::store::{StoreError, failed};

/// By which connections tenants' rows are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Door<'a> {
    /// A service: its own role for the shared tables, and each tenant's for a schema of one's own.
    Service { service: Service, shared: &'a PgPool, own: &'a OwnPool, pooler: Pooler, purpose: Purpose },
    /// Provisioning: the owner of all schemas, which row security holds for as well.
    Owner(&'a PgPool),
    /// The same, and it changes what is configured: a move waits for it, or it for the move.
    Configuring(&'a PgPool),
}

/// What a service's transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading, or writing what a move holds back by its own means: results.
    Serving,
    /// Writing anything else: a move waits for it, or it for the move.
    Writing,
}

/// Whoever looks in the wrong place is told the right one, and a move may come in between: not twice in a moment.
const PLACES_LOOKED_AT: usize = 4;

/// A transaction that speaks for one tenant at a time.
#[derive(Debug)]
pub struct TenantTx {
    tx: Transaction<'static, Postgres>,
    isolation: Isolation,
    pooler: Pooler,
}

/// Where a transaction turned out to be.
enum Entered {
    There(TenantTx),
    /// The tenant's rows are kept otherwise.
    Elsewhere(Isolation),
}

/// Names the tenant and goes where its rows are, if that is where `$2` says: the role is only taken where it exists.
const ENTER: &str = "
    select set_config('app.tenant_id', $1::text, true), set_config('search_path', $2, true), t.isolation, pg_backend_pid(), t.state,
           case when t.isolation = 'schema' and $3 <> '' then set_config('role', $3, true) end
    from (select 1) nobody left join (
        select isolation, state from platform.tenant where tenant_id = $1::text::uuid) t on true";

/// A transaction in which only `tenant`'s rows exist.
pub(crate) async fn begin(door: Door<'_>, tenant: &Tenant) -> Result<TenantTx, StoreError> {
    // A tenant whose plan has changed is moved soon, and for everybody else the plan is right.
    let mut isolation = isolation_of(&tenant.plan);
    for _ in 0..PLACES_LOOKED_AT {
        match enter(door, tenant, isolation).await? {
            Entered::There(tx) => return Ok(tx),
            Entered::Elsewhere(found) => isolation = found,
        }
    }
    Err(StoreError::Moved { slug: tenant.slug.clone() })
}

async fn enter(door: Door<'_>, tenant: &Tenant, isolation: Isolation) -> Result<Entered, StoreError> {
    let place = Place::of(tenant, isolation);
    // Before anything is read, so that no move takes away what is read here: in the statement that begins, which costs no
    // round trip more.
    let pooler = match door {
        Door::Service { pooler, .. } => pooler,
        Door::Owner(_) | Door::Configuring(_) => Pooler::None,
    };
    let mut begin = format!("begin{}; ", pooler.settings());
    if let Door::Service { purpose: Purpose::Writing, .. } = door {
        begin.push_str(&format!("select pg_advisory_xact_lock_shared({}); ", writing_lock(tenant)));
    }
    begin.push_str(&format!("select pg_advisory_xact_lock_shared({})", place.lock_key(tenant)));
    let (pool, role) = match (door, isolation) {
        (Door::Service { shared, .. }, Isolation::Shared) => (shared, String::new()),
        (Door::Service { own, service, .. }, Isolation::Schema) => {
            (own.pool(), place.role_of(service).unwrap_or_default())
        }
        (Door::Owner(pool) | Door::Configuring(pool), Isolation::Shared | Isolation::Schema) => (pool, String::new()),
    };
    let mut tx = pool.begin_with(AssertSqlSafe(begin)).await.map_err(failed("begin"))?;
    let expected = tenant.id.as_uuid().to_string();
    let enter = match door {
        Door::Service { .. } | Door::Owner(_) => ENTER.to_owned(),
        Door::Configuring(_) => {
            ENTER.replace("where tenant_id = $1::text::uuid", "where tenant_id = $1::text::uuid for share")
        }
    };
    let row = sqlx::query(AssertSqlSafe(enter))
        .bind(&expected)
        .bind(&*place.schema)
        .bind(&role)
        .fetch_one(Link::new(&mut tx, pooler))
        .await
        .map_err(failed("name the tenant"))?;
    check_setting(&expected, row.get(0))?;
    let found = row.get::<Option<&str>, _>(2).map(str::parse).transpose();
    let found: Option<Isolation> =
        found.map_err(|error| StoreError::Row { account: tenant.slug.to_string(), what: format!("{error}") })?;
    // Who is not on the list has no schema of its own.
    let found = found.unwrap_or(Isolation::Shared);
    if found != isolation {
        return Ok(Entered::Elsewhere(found));
    }
    let is_open = row.get::<Option<&str>, _>(4).is_some_and(|state| state.parse().is_ok_and(TenantState::is_open));
    if let (Door::Service { purpose: Purpose::Writing, .. }, false) = (door, is_open) {
        return Err(StoreError::TenantClosed { slug: tenant.slug.clone() });
    }
    if let (Door::Service { own, pooler: Pooler::None, .. }, Isolation::Schema) = (door, isolation) {
        own.note_visit(row.get(3), &place.schema);
    }
    Ok(Entered::There(TenantTx { tx, isolation, pooler }))
}

/// What services hold while they write what is no result, and a move takes when it copies that, as does whoever closes the tenant:
/// the two numbers of the lock.
pub(crate) fn writing_lock(tenant: &Tenant) -> String {
    format!("hashtext('writing'), hashtext('{}')", tenant.id.as_uuid())
}

fn check_setting(expected: &str, found: String) -> Result<(), StoreError> {
    if found == expected { Ok(()) } else { Err(StoreError::Setting { expected: expected.to_owned(), found }) }
}

impl TenantTx {
    /// From here on `tenant`'s rows are the only ones, until the transaction ends or switches again. Only among tenants of
    /// the shared tables: one with a schema of its own has a transaction of its own.
    ///
    /// # Errors
    /// When either has a schema of its own, or the setting did not take.
    pub async fn switch_to(&mut self, tenant: &Tenant) -> Result<(), StoreError> {
        if self.isolation != Isolation::Shared || isolation_of(&tenant.plan) != Isolation::Shared {
            return Err(StoreError::Moved { slug: tenant.slug.clone() });
        }
        let expected = tenant.id.as_uuid().to_string();
        let named = sqlx::query_scalar("select set_config('app.tenant_id', $1, true)").bind(&expected);
        let found = named.fetch_one(self.connection()).await.map_err(failed("name the tenant"))?;
        check_setting(&expected, found)
    }

    /// Where the rows are that this transaction sees.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    pub fn connection(&mut self) -> Link<'_> {
        Link::new(&mut self.tx, self.pooler)
    }

    /// # Errors
    /// When the database does not confirm; then it is unknown whether it was stored.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.tx.commit().await.map_err(failed("commit"))
    }
}
