//! The only door to tenant rows. [`TenantTx`] names the tenant before anything else is said, row security holds it to
//! that, and forgetting the tenant is an error of the database and never an empty or a full answer.

pub mod admin;
pub mod backup;
mod changes;
pub mod inspection;
mod isolation;
mod offboarding;
mod pollers;
mod provisioning;
pub mod rights;
mod store;
mod url;

pub use admin::AdminError;
pub use changes::{Change, Changes};
pub use inspection::Inspection;
pub use isolation::{Isolation, isolation_of};
pub use offboarding::RowCounts;
pub use pollers::{PollerRecord, PollerState, SiteRecord, WithPollers};
pub use provisioning::{Provisioning, ProvisioningError, TenantNote};
pub use store::{Store, StoreError, TenantTx, Tenants};
pub use url::{UrlError, read_database_url};
