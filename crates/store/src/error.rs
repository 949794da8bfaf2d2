//! Why a service is not served by the database, and whether that passes.

use std::time::Duration;

use bulkhead_bus::TenantSlug;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action}")]
    Sql { action: &'static str, source: sqlx::Error },
    #[error("{action}: no answer of the database within {limit:?}")]
    TimedOut { action: &'static str, limit: Duration },
    #[error("database role {role} is {what}: services must use a role that row security holds for")]
    Privileged { role: String, what: String },
    #[error("tenants are not kept apart: {}; `bulkhead doctor --area permissions` says how to mend it", .0.join("; "))]
    NotApart(Vec<String>),
    #[error("database schemas are not there: run `bulkhead db migrate` first")]
    NotMigrated(#[source] sqlx::Error),
    #[error("schema {schema} has version {found}, and this release needs {expected}: run `bulkhead db migrate` first")]
    Outdated { schema: &'static str, expected: i64, found: i64 },
    #[error("schema {schema} has version {found}, and this release needs {expected}: run `bulkhead db migrate` first")]
    OutdatedTenant { schema: String, expected: i64, found: i64 },
    #[error("tenant setting is {found:?} after it was set to {expected}")]
    Setting { expected: String, found: String },
    #[error("tenant row {account} is not readable: {what}")]
    Row { account: String, what: String },
    #[error(
        "schema {schema} has version {found}, which needs services that know {floor} at least, and this release knows {known}: run a newer release"
    )]
    TooNew { schema: &'static str, found: i64, floor: i64, known: i64 },
    #[error("tenant {slug} leaves: nothing is written for it any more")]
    TenantClosed { slug: TenantSlug },
    #[error(
        "a connection pooler stands between us and the database and keeps no session: give the address of PostgreSQL itself, or, \
         for core, set database_direct_url_file beside that of the pooler"
    )]
    Pooled,
    #[error("the rows of tenant {slug} are being moved or were: try again")]
    Moved { slug: TenantSlug },
}

impl StoreError {
    /// Whether trying again may help: the database is away, not the data wrong.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Sql { source, .. } | Self::NotMigrated(source) => is_transient(source),
            Self::TimedOut { .. } => true,
            Self::Moved { .. }
            | Self::Pooled
            | Self::TooNew { .. }
            | Self::Privileged { .. }
            | Self::NotApart(_)
            | Self::Outdated { .. }
            | Self::OutdatedTenant { .. }
            | Self::Setting { .. }
            | Self::Row { .. }
            | Self::TenantClosed { .. } => false,
        }
    }

    /// Whether the database refused the very values that it was given, so that it will refuse them for ever. Everything
    /// else (a right, a column or a partition that is missing, say) is for the operator to mend, and the values are good.
    #[must_use]
    pub fn is_the_datas_fault(&self) -> bool {
        match self {
            Self::Sql { source: sqlx::Error::Database(refused), .. } => {
                refused.code().is_some_and(|code| blames_data(&code, refused.constraint()))
            }
            // Beyond what the protocol can carry, such as a time of another age.
            Self::Sql { source: sqlx::Error::Encode(_), .. } => true,
            Self::Sql { .. }
            | Self::NotMigrated(_)
            | Self::TimedOut { .. }
            | Self::Moved { .. }
            | Self::Pooled
            | Self::TooNew { .. }
            | Self::Privileged { .. }
            | Self::NotApart(_)
            | Self::Outdated { .. }
            | Self::OutdatedTenant { .. }
            | Self::Setting { .. }
            | Self::Row { .. }
            | Self::TenantClosed { .. } => false,
        }
    }
}

/// Whether an SQLSTATE is about the values. In doubt it is not: what waits can still be stored, what is buried may not.
fn blames_data(code: &str, constraint: Option<&str>) -> bool {
    match code {
        // A parameter of the server or of a function, and none of the values that are stored.
        "22023" => false,
        // A check has a name. A day without a partition is reported under the same code, and has none.
        "23514" => constraint.is_some(),
        // Of the other constraints none is ours to break: we meet our own keys, name no row of another table and send null
        // only where it is welcome. Who is refused by one has a schema that is not this release's.
        _ => code.starts_with("22"),
    }
}

pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    match error.as_database_error() {
        // Connection exceptions, rollbacks, resources (disk full among them), operator intervention, system errors.
        Some(error) => {
            error.code().is_some_and(|code| ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class)))
        }
        None => matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_)
                | sqlx::Error::Tls(_)
        ),
    }
}

pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(source: sqlx::Error) -> StoreError {
        failed("write results")(source)
    }

    #[test]
    fn only_what_is_about_the_values_is_the_datas_fault() {
        for (code, constraint, expected) in [
            ("22003", None, true),
            ("22021", None, true),
            ("22P02", None, true),
            ("22P05", None, true),
            ("23514", Some("latency_is_not_negative"), true),
            // No partition of the day.
            ("23514", None, false),
            ("22023", None, false),
            ("23502", None, false),
            ("23503", Some("site_is_known"), false),
            ("23505", Some("result_pkey"), false),
            ("0A000", None, false),
            ("25006", None, false),
            ("28P01", None, false),
            ("3F000", None, false),
            ("42501", None, false),
            ("42703", None, false),
            ("42804", None, false),
            ("42883", None, false),
            ("42P01", None, false),
            ("42P10", None, false),
            ("53100", None, false),
            ("54000", None, false),
            ("57P01", None, false),
            ("P0001", None, false),
            ("XX001", None, false),
            ("", None, false),
        ] {
            assert_eq!(blames_data(code, constraint), expected, "{code} of {constraint:?}");
        }
    }

    #[test]
    fn what_the_database_did_not_refuse_is_the_datas_fault_only_where_it_cannot_be_sent() {
        assert!(sql(sqlx::Error::Encode("a year beyond all".into())).is_the_datas_fault());
        let (expected, found) = (String::new(), String::new());
        for error in [
            sql(sqlx::Error::RowNotFound),
            sql(sqlx::Error::ColumnNotFound("slot".to_owned())),
            sql(sqlx::Error::Decode("no text".into())),
            sql(sqlx::Error::TypeNotFound { type_name: "jsonb".to_owned() }),
            sql(sqlx::Error::PoolTimedOut),
            StoreError::TimedOut { action: "write results", limit: Duration::from_secs(5) },
            StoreError::Setting { expected, found },
            StoreError::Row { account: String::new(), what: String::new() },
        ] {
            assert!(!error.is_the_datas_fault(), "{error:?}");
        }
    }
}
