//! The tables that carry a tenant's id, as the catalogue has them, and each kind of statement about one.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::Tenant;
use bulkhead_store::Service;
use bulkhead_store::rights::Right;
use sqlx::{PgConnection, Row};

/// Where it is, and what services may do with it.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) schema: String,
    /// With its schema.
    pub(crate) name: String,
    pub(crate) is_partition: bool,
    pub(crate) is_partitioned: bool,
    /// Those that a row needs, with their types.
    columns: Vec<(String, String)>,
    key: Vec<String>,
    /// A moment that has a partition, also when midnight has come in between.
    day: String,
    /// What the migrations grant to the role that each service is there.
    rights: BTreeMap<Service, BTreeSet<String>>,
}

const TABLES: &str = "
    select n.nspname::text, c.relname::text, c.relispartition,
           (select array_agg(a.attname::text order by a.attnum) from pg_attribute a where a.attrelid = c.oid and a.attname = any(needed)),
           (select array_agg(format_type(a.atttypid, null) order by a.attnum) from pg_attribute a
            where a.attrelid = c.oid and a.attname = any(needed)),
           key, current_date::timestamptz::text, c.relkind = 'p'
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (
        select array(select a.attname::text from pg_constraint k join pg_attribute a
                     on a.attrelid = c.oid and a.attnum = any(k.conkey) where k.conrelid = c.oid and k.contype = 'p')) k (key)
    cross join lateral (
        select array(select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                     and (a.attnotnull and not a.atthasdef or a.attname = any(key)))) l (needed)
    where c.relkind in ('r', 'p') and n.nspname <> 'platform'
      and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
    order by 1, 2";

/// Every table with a tenant's id, in whichever schema; those of the platform are no tenant's.
pub(crate) async fn tenant_tables(superuser: &mut PgConnection, expected: &BTreeSet<Right>) -> Vec<Table> {
    let rows = sqlx::query(TABLES).fetch_all(superuser).await.unwrap();
    let table = |row: &sqlx::postgres::PgRow| {
        let schema: String = row.get(0);
        let name = format!("{schema}.{}", row.get::<&str, _>(1));
        let granted = |service: Service| {
            let role = role_of(service, &schema);
            let granted = expected.iter().filter(|right| right.object == name && right.role == role);
            (service, granted.map(|right| right.privilege.clone()).collect())
        };
        let rights = Service::ALL.into_iter().map(granted).collect();
        let columns = row.get::<Vec<String>, _>(3).into_iter().zip(row.get::<Vec<String>, _>(4)).collect();
        Table {
            name,
            is_partition: row.get(2),
            is_partitioned: row.get(7),
            columns,
            key: row.get(5),
            day: row.get(6),
            rights,
            schema,
        }
    };
    rows.iter().map(table).collect()
}

/// The role that a service is where a table is.
pub(crate) fn role_of(service: Service, schema: &str) -> String {
    if schema == "shared" { service.login().to_owned() } else { format!("{schema}_{}", service.token()) }
}

/// A kind of statement about the rows of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Select,
    /// Everything that the tenant that is named does not have.
    SelectStrangers,
    SelectForUpdate,
    Insert,
    /// On conflict with the row that is there.
    Upsert,
    Update,
    /// To somebody else.
    GiveAway,
    Delete,
    Truncate,
    CopyTo,
    CopyQueryTo,
    CopyFrom,
    MergeUpdate,
    MergeInsert,
    MergeDelete,
}

impl Kind {
    pub(crate) const ALL: [Self; 15] = [
        Self::Select,
        Self::SelectStrangers,
        Self::SelectForUpdate,
        Self::Insert,
        Self::Upsert,
        Self::Update,
        Self::GiveAway,
        Self::Delete,
        Self::Truncate,
        Self::CopyTo,
        Self::CopyQueryTo,
        Self::CopyFrom,
        Self::MergeUpdate,
        Self::MergeInsert,
        Self::MergeDelete,
    ];

    /// The privileges that it takes.
    pub(crate) fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Select | Self::SelectStrangers | Self::CopyTo | Self::CopyQueryTo => &["SELECT"],
            Self::SelectForUpdate | Self::Update | Self::GiveAway | Self::MergeUpdate => &["SELECT", "UPDATE"],
            Self::Insert | Self::CopyFrom => &["INSERT"],
            Self::Upsert => &["SELECT", "INSERT", "UPDATE"],
            Self::Delete | Self::MergeDelete => &["SELECT", "DELETE"],
            Self::Truncate => &["TRUNCATE"],
            Self::MergeInsert => &["SELECT", "INSERT"],
        }
    }

    /// The statement about `owner`'s rows of `table`, which is called `name`, by who has named `named`.
    pub(crate) fn sql(self, table: &Table, name: &str, owner: &Tenant, named: Option<&Tenant>) -> String {
        let id = owner.id.as_uuid();
        let whose = format!("where tenant_id = '{id}'");
        let (columns, key) = (table.column_list(), table.key.join(", "));
        let merge = format!("merge into {name} t using (select '{id}'::uuid) s (id) on t.tenant_id = s.id");
        match self {
            Self::Select => format!("select tenant_id from {name} {whose}"),
            Self::SelectStrangers => match named {
                Some(named) => format!("select tenant_id from {name} where tenant_id <> '{}'", named.id.as_uuid()),
                None => format!("select tenant_id from {name}"),
            },
            Self::SelectForUpdate => format!("select tenant_id from {name} {whose} for update"),
            Self::Insert => table.insert(name, owner, "new"),
            Self::Upsert => format!(
                "{} on conflict ({key}) do update set tenant_id = excluded.tenant_id",
                table.insert(name, owner, "seed")
            ),
            Self::Update => format!("update {name} set tenant_id = tenant_id {whose}"),
            Self::GiveAway => format!("update {name} set tenant_id = gen_random_uuid() {whose}"),
            Self::Delete => format!("delete from {name} {whose}"),
            Self::Truncate => format!("truncate {name}"),
            Self::CopyTo => format!("copy {name} (tenant_id) to stdout"),
            Self::CopyQueryTo => format!("copy (select tenant_id from {name}) to stdout"),
            Self::CopyFrom => format!("copy {name} ({columns}) from stdin"),
            Self::MergeUpdate => format!("{merge} when matched then update set tenant_id = t.tenant_id"),
            Self::MergeInsert => format!(
                "{merge} and t.tenant_id is null when not matched then insert ({columns}) values ({})",
                table.values(owner, "new")
            ),
            Self::MergeDelete => format!("{merge} when matched then delete"),
        }
    }
}

impl Table {
    fn column_list(&self) -> String {
        self.columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A row of `owner`; the same mark makes the same key.
    fn values(&self, owner: &Tenant, mark: &str) -> String {
        let id = owner.id.as_uuid();
        let value = |(name, kind): &(String, String)| match (name.as_str(), kind.as_str()) {
            ("tenant_id", _) => format!("'{id}'"),
            // What a check or an index over all tenants asks for.
            ("act", _) => "'insert'".to_owned(),
            ("event", _) => "'joined'".to_owned(),
            ("batch_key", _) => format!("'{mark}-{id}'"),
            (_, "text") => format!("'{mark}'"),
            (_, "uuid") => format!("md5('{mark}')::uuid"),
            (_, "bytea") => format!("'{mark}'::bytea"),
            (_, "boolean") => "false".to_owned(),
            (_, "jsonb") => "'{}'".to_owned(),
            (_, "bigint" | "integer") => "0".to_owned(),
            (_, "timestamp with time zone") => format!("'{}'", self.day),
            other => panic!("{}: say here what a row has in {other:?}", self.name),
        };
        self.columns.iter().map(value).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn insert(&self, name: &str, owner: &Tenant, mark: &str) -> String {
        format!("insert into {name} ({}) values ({})", self.column_list(), self.values(owner, mark))
    }

    pub(crate) fn rights(&self, service: Service) -> &BTreeSet<String> {
        &self.rights[&service]
    }

    /// Whether a tenant has one row at most.
    pub(crate) fn holds_one_row(&self) -> bool {
        self.key == ["tenant_id"]
    }
}
