//! What provisioning talks to: the hub's servers over SYS, and the database.

use bulkhead_runtime::Bus;
use bulkhead_store::Provisioning;

use super::{Tenancy, TenancyError};
use crate::files::read_secret;
use crate::operator::AccountRecord;
use crate::resolver::push;

/// Connections of one command.
pub struct Links {
    pub system: Bus,
    /// `None` where the platform's settings name no database.
    pub database: Option<Provisioning>,
    /// How many servers have to show a change.
    pub servers: usize,
}

impl Tenancy {
    /// Connects to SYS and to the database.
    ///
    /// # Errors
    /// When one of them cannot be reached.
    pub async fn connect(&self) -> Result<Links, TenancyError> {
        let system = self.platform.connect_system().await.map_err(TenancyError::Platform)?;
        Ok(Links { system, database: self.connect_database().await?, servers: self.settings.hub_servers.servers() })
    }

    /// Connects to the database, if there is one.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect_database(&self) -> Result<Option<Provisioning>, TenancyError> {
        let Some(path) = &self.settings.database_url_file else { return Ok(None) };
        let url = read_secret(path).map_err(TenancyError::DatabaseUrl)?;
        Provisioning::connect(url.trim()).await.map(Some).map_err(TenancyError::Rows)
    }
}

impl Links {
    /// Pushes an account until every server shows it.
    ///
    /// # Errors
    /// When a server refuses it or does not show it in time.
    pub async fn push(&self, account: &AccountRecord) -> Result<(), TenancyError> {
        let pushed = push(&self.system, account, self.servers).await;
        pushed.map_err(|source| TenancyError::Push { account: account.name.clone(), source })
    }
}
