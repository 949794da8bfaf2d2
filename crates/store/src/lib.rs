//! The only door to tenant rows. [`TenantTx`] names the tenant before anything else is said, row security holds it to
//! that, and forgetting the tenant is an error of the database and never an empty or a full answer.

pub mod admin;
pub mod backup;
mod batch_keys;
mod changes;
pub mod inspection;
mod isolation;
mod limit;
mod migrations;
mod moving;
mod offboarding;
mod own_pool;
mod pollers;
mod pooler;
mod provisioning;
pub mod rights;
mod schemas;
mod self_test;
mod store;
mod tenant_import;
mod tenant_rows;
mod tending;
mod transaction;
mod url;

pub use admin::AdminError;
pub use batch_keys::{BatchKeys, DamagedPoller, Registered, read_batch_keys};
pub use changes::{Change, Changes};
pub use inspection::Inspection;
pub use isolation::{Isolation, UnknownIsolation, isolation_of};
pub use limit::{READ_LIMIT, within};
pub use migrations::{MigrationProgress, SchemaVersion, migrate, migrate_all, versions};
pub use moving::{MoveStep, MovedRows};
pub use offboarding::RowCounts;
pub use pollers::{PollerRecord, PollerState, SiteRecord, WithPollers};
pub use pooler::Link;
pub use provisioning::{Provisioning, ProvisioningError, TenantNote};
pub use schemas::SCHEMAS_MOST;
pub use store::{Connections, PlatformConnection, Store, StoreError, Tenants};
pub use tenant_import::{Bring, BroughtRows, FedRows, ImportProgress, ImportStep};
pub use tenant_rows::{ExportedRows, RowPiece, RowSink, TENANT_TABLES, TableSum};
pub use transaction::TenantTx;
pub use url::{UrlError, read_database_url};
