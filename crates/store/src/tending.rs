//! What a service does to the tables of tenants beside reading and writing rows, each by a function of the owner's that does
//! this and nothing else.

use crate::store::{StoreError, failed};
use crate::transaction::TenantTx;

impl TenantTx {
    /// Drops partitions of which nobody whose rows are here keeps anything, and says how many. Whoever reads in one is not waited
    /// for: then none is dropped, and the transaction is of no use any more.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn drop_old_partitions(&mut self) -> Result<u64, StoreError> {
        let dropped = sqlx::query_scalar("select drop_old_partitions()").fetch_one(self.connection()).await;
        match dropped {
            Ok(count) => Ok(u64::from(i32::unsigned_abs(count))),
            Err(error)
                if error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "55P03") =>
            {
                Ok(0)
            }
            Err(error) => Err(failed("drop old partitions")(error)),
        }
    }

    /// Removes up to `most` results, and as many dead letters, assignments that ended, runs on demand and events of members,
    /// that the tenant's plan keeps no longer; the largest number of them.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn remove_old_rows(&mut self, most: i32) -> Result<u64, StoreError> {
        let gone = sqlx::query_scalar("select remove_old_rows($1)").bind(most).fetch_one(self.connection()).await;
        gone.map(i64::unsigned_abs).map_err(failed("remove what is kept no longer"))
    }

    /// Opens what a move of the tenant's rows holds that was killed; whether it did.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn reopen_place(&mut self) -> Result<bool, StoreError> {
        let opened = sqlx::query_scalar("select reopen_place()").fetch_one(self.connection()).await;
        opened.map_err(failed("open a tenant's place again"))
    }
}
