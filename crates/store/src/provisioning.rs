//! What provisioning writes of tenants. Everything can be said twice with the same effect, and nothing takes longer the more
//! tenants there are.

use std::time::Duration;

use bulkhead_bus::{AccountKey, PollerName, SiteName, Tenant, TenantId, TenantSlug};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::admin::AdminError;
use crate::isolation::{Isolation, isolation_of};
use crate::pooler::{Link, Pooler, check_own, marked, refused};
use crate::schemas::{SCHEMAS_MOST, close_shared};
use crate::store::{READ_TENANT, StoreError, Tenants, read_tenants, tenant_of_row};
use crate::transaction::{Door, TenantTx, begin};

const CONNECTIONS: u32 = 2;
const DISPLAY_NAME_CHARS_MAX: usize = 200;

/// Why a row was not written.
#[derive(Debug, thiserror::Error)]
pub enum ProvisioningError {
    #[error("{action}")]
    Sql { action: &'static str, source: sqlx::Error },
    #[error("tenant")]
    Store(#[source] StoreError),
    #[error("schema of a tenant")]
    Schema(#[source] AdminError),
    #[error(
        "this database holds {SCHEMAS_MOST} schemas of tenants and does not hold more well: leave {slug} on plan pro, move a \
         tenant that has a schema to pro, or give {slug} a deployment with a database of its own"
    )]
    SchemasFull { slug: TenantSlug },
    #[error("the rows of tenant {slug} are in its own schema: move them first, or purge the tenant")]
    SchemaInUse { slug: TenantSlug },
    #[error("slug {slug} belongs to another account: offboard that tenant first, or choose another slug")]
    SlugTaken { slug: TenantSlug },
    #[error("account {account} cannot be a tenant's and the platform's at the same time: use another account")]
    TwoRoles { account: AccountKey },
    #[error("the batch key of {site}/{poller} belongs to another poller: every poller signs with a key of its own")]
    KeyTaken { site: SiteName, poller: PollerName },
    #[error("there is no tenant {slug} in the database: onboard it first")]
    NoTenant { slug: TenantSlug },
    #[error("there is no poller {site}/{poller} in the database: add it first")]
    NoPoller { site: SiteName, poller: PollerName },
    #[error("site {site} has {pollers} pollers: remove them first, or together with the site")]
    SiteInUse { site: SiteName, pollers: u64 },
    #[error("somebody else is moving the rows of tenant {slug}, or purging them: wait for that, and say it again")]
    BeingMoved { slug: TenantSlug },
    #[error(
        "a move of the rows of tenant {slug} was begun and is not done: `bulkhead tenant plan {slug} PLAN` completes it, or takes \
         it back; say this again then"
    )]
    MoveBegun { slug: TenantSlug },
    #[error("tenant {slug} leaves: its rows stay where they are; restore it first")]
    Leaves { slug: TenantSlug },
    #[error(
        "{table} has {there} rows where they were and {here} where they were copied to, or other ones: nothing was switched, \
         look for triggers and rows with a partition of their own, and say it again"
    )]
    NotTheSame { table: String, there: i64, here: i64 },
    #[error("{part} of the rows does not go where it should")]
    Sink { part: String, source: std::io::Error },
    #[error("the rows end before their end: nothing was brought")]
    NotWhole,
    #[error("there is no table for {part}: a newer release made it; nothing was brought, use that release")]
    UnknownPart { part: String },
    #[error(
        "{part} has a column that is not known here, {column}: a newer release made it; nothing was brought, use that release"
    )]
    UnknownColumn { part: String, column: String },
    #[error(
        "{table} has a {column} that is none, {value:?}: nothing was brought; use another backup, or the release that made it"
    )]
    UnknownValue { table: String, column: String, value: String },
    #[error(
        "{table} has {rows} rows with a number or time that nobody can have measured: nothing was brought; use another backup"
    )]
    BadRows { table: String, rows: u64 },
    #[error(
        "the backup says that it was taken at {taken_ms} ms, which is yet to come: nothing was brought; use another one"
    )]
    FromTheFuture { taken_ms: i64 },
    #[error("{table} had {there} rows and {here} of them came: nothing was brought; use another backup")]
    NotAsExported { table: String, there: u64, here: u64 },
    #[error("tenant {slug} is written as one that leaves: write it first, and change its state then")]
    WrittenClosed { slug: TenantSlug },
    #[error("tenant {slug} is active or suspended, so its rows stay: begin its offboarding first")]
    StillOpen { slug: TenantSlug },
    #[error("tenant {slug} still has rows ({left}): purge it first")]
    RowsLeft { slug: TenantSlug, left: String },
    #[error("display name {name:?} is not 1 to {DISPLAY_NAME_CHARS_MAX} characters long: choose another")]
    DisplayName { name: String },
}

/// What people read of a tenant beside its slug.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantNote {
    /// Free text: it reaches no subject, path, identifier or template.
    pub display_name: Option<String>,
    /// Of the plan that its account was rendered from.
    pub plan_version: Option<u32>,
}

impl ProvisioningError {
    /// Whether the database took a transaction back for another one's sake: the same may succeed now.
    pub(crate) fn is_rollback(&self) -> bool {
        let Self::Sql { source, .. } = self else { return false };
        source.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with("40"))
    }

    /// Whether the rows that were to be brought are at fault.
    #[must_use]
    pub fn is_rows_fault(&self) -> bool {
        matches!(
            self,
            Self::NotWhole
                | Self::UnknownPart { .. }
                | Self::UnknownColumn { .. }
                | Self::UnknownValue { .. }
                | Self::BadRows { .. }
                | Self::FromTheFuture { .. }
        )
    }
}

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> ProvisioningError {
    move |source| ProvisioningError::Sql { action, source }
}

/// Nothing is written for an account that has the other role: the guard would take a tenant for the platform.
fn one_role(key: &AccountKey, written: u64) -> Result<(), ProvisioningError> {
    if written == 1 { Ok(()) } else { Err(ProvisioningError::TwoRoles { account: key.clone() }) }
}

/// A connection as the role that provisions.
#[derive(Debug, Clone)]
pub struct Provisioning {
    pub(crate) pool: PgPool,
    /// Whom the list of changes names.
    acting: Option<String>,
}

impl Provisioning {
    /// # Errors
    /// When the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, ProvisioningError> {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_LIMIT).after_connect(
            |connection, _| {
                Box::pin(async move {
                    // The login role inherits nothing: what it does, it does as the owner, under forced row security.
                    sqlx::query("set role bulkhead_owner").execute(connection).await.map(|_| ())
                })
            },
        );
        // A begin that was cancelled may have begun. Beginning first, because a rollback of nothing is a warning each time.
        let options = options.after_release(|connection, _| {
            Box::pin(async move { sqlx::raw_sql("begin; rollback").execute(connection).await.map(|_| true) })
        });
        let to = marked(url.parse().map_err(failed("read database address"))?);
        let pool = options.connect_with(to).await.map_err(|error| ProvisioningError::Store(refused(error)))?;
        // A lock of a session that is another's in the next statement locks nothing.
        check_own(&pool).await.map_err(ProvisioningError::Store)?;
        Ok(Self { pool, acting: None })
    }

    /// An account whose people may name a target tenant.
    ///
    /// # Errors
    /// When the account is a tenant's.
    pub async fn put_platform_account(&self, key: &AccountKey, name: &str) -> Result<(), ProvisioningError> {
        let sql = "insert into platform.platform_account (account_key, name)
                   select $1, $2 where not exists (select from platform.tenant where account_key = $1)
                   on conflict (name) do update set account_key = excluded.account_key";
        let put = sqlx::query(sql).bind(key.as_str()).bind(name).execute(&self.pool).await;
        one_role(key, put.map_err(failed("write platform account"))?.rows_affected())
    }

    /// Every tenant and platform account.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenants(&self) -> Result<Tenants, ProvisioningError> {
        let mut connection = self.pool.acquire().await.map_err(failed("take a connection"))?;
        read_tenants(Link::new(&mut connection, Pooler::None)).await.map_err(ProvisioningError::Store)
    }

    /// # Errors
    /// When the database does not answer.
    pub async fn tenant_by_account(&self, key: &AccountKey) -> Result<Option<Tenant>, ProvisioningError> {
        self.tenant_where("account_key = $1", key.as_str()).await
    }

    /// # Errors
    /// When the database does not answer.
    pub async fn tenant_by_slug(&self, slug: &TenantSlug) -> Result<Option<Tenant>, ProvisioningError> {
        self.tenant_where("slug = $1", slug.as_str()).await
    }

    async fn tenant_where(&self, condition: &'static str, value: &str) -> Result<Option<Tenant>, ProvisioningError> {
        let sql = format!("{READ_TENANT} where {condition}");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(value).fetch_optional(&self.pool).await;
        let row = row.map_err(failed("read a tenant"))?;
        let tenant = row.as_ref().map(tenant_of_row).transpose().map_err(ProvisioningError::Store)?;
        Ok(tenant.map(|(_, tenant)| tenant))
    }

    /// How many tenants there are, in whatever state.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenant_count(&self) -> Result<u64, ProvisioningError> {
        let sql = "select count(*) from platform.tenant";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await.map_err(failed("count tenants"))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// # Errors
    /// When the name is empty or too long, or there is no such tenant.
    pub async fn put_tenant_note(&self, tenant: &Tenant, note: &TenantNote) -> Result<(), ProvisioningError> {
        let is_good =
            |name: &String| (1..=DISPLAY_NAME_CHARS_MAX).contains(&name.chars().count()) && !name.contains('\0');
        if let Some(name) = note.display_name.as_ref().filter(|name| !is_good(name)) {
            let name = name.chars().take(DISPLAY_NAME_CHARS_MAX).collect();
            return Err(ProvisioningError::DisplayName { name });
        }
        let sql = "update platform.tenant set display_name = $2, plan_version = $3 where tenant_id = $1";
        let put = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(&note.display_name)
            .bind(note.plan_version.map(|version| i32::try_from(version).unwrap_or(i32::MAX)))
            .execute(&self.pool)
            .await
            .map_err(failed("write what people read of a tenant"))?;
        if put.rows_affected() == 1 { Ok(()) } else { Err(ProvisioningError::NoTenant { slug: tenant.slug.clone() }) }
    }

    /// # Errors
    /// When there is no such tenant.
    pub async fn tenant_note(&self, tenant: &Tenant) -> Result<TenantNote, ProvisioningError> {
        let sql = "select display_name, plan_version from platform.tenant where tenant_id = $1";
        let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_optional(&self.pool).await;
        let row = row.map_err(failed("read what people read of a tenant"))?;
        let row = row.ok_or_else(|| ProvisioningError::NoTenant { slug: tenant.slug.clone() })?;
        Ok(TenantNote {
            display_name: row.get(0),
            plan_version: row.get::<Option<i32>, _>(1).and_then(|version| u32::try_from(version).ok()),
        })
    }

    /// Writes a tenant by its account key; its id stays what it was at first, and a tenant that leaves goes on leaving:
    /// only [`Self::set_tenant_state`] begins or ends that.
    ///
    /// # Errors
    /// When another account holds the slug, the account is the platform's, or the tenant is written as one that leaves.
    pub async fn put_tenant(&self, key: &AccountKey, tenant: &Tenant) -> Result<(), ProvisioningError> {
        if !tenant.state.is_open() {
            return Err(ProvisioningError::WrittenClosed { slug: tenant.slug.clone() });
        }
        let isolation = self.make_place(key, tenant).await?;
        let sql = "insert into platform.tenant
                     (tenant_id, account_key, slug, plan, state, retention_days, allows_unsigned, isolation)
                   select $1, $2, $3, $4, $5, $6, $7, $8
                   where not exists (select from platform.platform_account where account_key = $2)
                   on conflict (account_key) do update set
                     slug = excluded.slug, plan = excluded.plan,
                     state = case when tenant.state in ('active', 'suspended') then excluded.state
                                  else tenant.state end,
                     state_since = case when tenant.state in ('active', 'suspended') and tenant.state <> excluded.state
                                        then clock_timestamp() else tenant.state_since end,
                     retention_days = excluded.retention_days, allows_unsigned = excluded.allows_unsigned";
        let put = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(key.as_str())
            .bind(tenant.slug.as_str())
            .bind(&tenant.plan)
            .bind(tenant.state.as_str())
            .bind(i32::try_from(tenant.retention_days).unwrap_or(i32::MAX))
            .bind(tenant.allows_unsigned)
            .bind(isolation.as_str())
            .execute(&self.pool)
            .await;
        match put {
            Ok(done) => one_role(key, done.rows_affected()),
            Err(sqlx::Error::Database(error)) if error.constraint() == Some("tenant_slug_key") => {
                Err(ProvisioningError::SlugTaken { slug: tenant.slug.clone() })
            }
            Err(error) => Err(failed("write tenant")(error)),
        }
    }

    /// The schema of a tenant that is new and has one of its own, before anybody may look for rows there. Whoever is on the
    /// list stays where its rows are.
    async fn make_place(&self, key: &AccountKey, tenant: &Tenant) -> Result<Isolation, ProvisioningError> {
        let isolation = isolation_of(&tenant.plan);
        let sql = "select account_key from platform.tenant where account_key = $1 or slug = $2
                   union all select account_key from platform.platform_account where account_key = $1";
        let known = sqlx::query_scalar(sql).bind(key.as_str()).bind(tenant.slug.as_str()).fetch_optional(&self.pool);
        let known: Option<String> = known.await.map_err(failed("look whether a tenant is there"))?;
        if isolation == Isolation::Schema && known.is_none() {
            self.make_schema(tenant).await?;
            let mut connection = self.alone().await?;
            close_shared(&mut connection, tenant).await?;
        }
        Ok(isolation)
    }

    pub(crate) async fn begin(&self, tenant: &Tenant) -> Result<TenantTx, ProvisioningError> {
        let mut tx = begin(Door::Configuring(&self.pool), tenant).await.map_err(ProvisioningError::Store)?;
        if let Some(acting) = &self.acting {
            let named = sqlx::query("select set_config('app.changed_by', $1, true)").bind(acting);
            named.execute(tx.connection()).await.map_err(failed("say who changes a tenant"))?;
        }
        Ok(tx)
    }

    /// From here on what is configured is written down as changed by `acting`.
    #[must_use]
    pub fn acting_as(self, acting: String) -> Self {
        Self { acting: Some(acting), ..self }
    }
}

impl Tenants {
    /// Ids by slug, for tools that must name a tenant to the database.
    #[must_use]
    pub fn id_of(&self, slug: &TenantSlug) -> Option<TenantId> {
        self.tenants.iter().find(|(_, tenant)| tenant.slug == *slug).map(|(_, tenant)| tenant.id)
    }
}
