//! The whole names of sites and pollers, as commands take them.

use bulkhead_bus::{PollerName, SiteName, TenantSlug};

use crate::certificates::{ClientIdentity, IdentityError};

/// A poller by its whole name: `acme-corp/oslo/p1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollerPath {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
}

/// A site by its whole name: `acme-corp/oslo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePath {
    pub tenant: TenantSlug,
    pub site: SiteName,
}

/// Why a text is no path.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("{value:?} is not {form}: write it like {example}")]
    Form { value: String, form: &'static str, example: &'static str },
    #[error("{0}")]
    Name(#[source] bulkhead_bus::NameError),
    #[error("{0}")]
    Taken(#[source] IdentityError),
}

impl std::str::FromStr for PollerPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let parts: Vec<&str> = text.split('/').collect();
        let [tenant, site, poller] = parts.as_slice() else {
            let value = text.chars().take(60).collect();
            return Err(PathError::Form { value, form: "a poller", example: "acme-corp/oslo/p1" });
        };
        let path = Self {
            tenant: tenant.parse().map_err(PathError::Name)?,
            site: site.parse().map_err(PathError::Name)?,
            poller: poller.parse().map_err(PathError::Name)?,
        };
        let Self { tenant, site, poller } = path.clone();
        ClientIdentity::Poller { tenant, site, poller }.check_plain().map_err(PathError::Taken)?;
        Ok(path)
    }
}

impl std::str::FromStr for SitePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let parts: Vec<&str> = text.split('/').collect();
        let [tenant, site] = parts.as_slice() else {
            let value = text.chars().take(60).collect();
            return Err(PathError::Form { value, form: "a site", example: "acme-corp/oslo" });
        };
        let path =
            Self { tenant: tenant.parse().map_err(PathError::Name)?, site: site.parse().map_err(PathError::Name)? };
        let Self { tenant, site } = path.clone();
        ClientIdentity::Leaf { tenant, site }.check_plain().map_err(PathError::Taken)?;
        Ok(path)
    }
}

impl std::fmt::Display for PollerPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.site, self.poller)
    }
}

impl std::fmt::Display for SitePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.tenant, self.site)
    }
}
