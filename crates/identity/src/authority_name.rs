//! What the authorities of a platform are called: in commands, and as files.

use std::fmt;
use std::str::FromStr;

use bulkhead_bus::{NameError, TenantSlug};
use serde::{Serialize, Serializer};

/// One authority of a platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthorityName {
    /// Above the intermediates, whose certificates clients and leaves show.
    ClientRoot,
    /// Of the hub's listeners.
    ServerRoot,
    /// Hub to hub.
    RouteRoot,
    /// The intermediate of people and services of the platform.
    Platform,
    Tenant(TenantSlug),
}

/// Why a text names no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityNameError {
    #[error("{0:?} is no authority: write client-root, server-root, route-root, platform or tenant/SLUG")]
    Unknown(String),
    #[error(transparent)]
    Slug(NameError),
}

impl AuthorityName {
    pub const ROOTS: [Self; 3] = [Self::ClientRoot, Self::ServerRoot, Self::RouteRoot];

    /// Whether it signs itself; the others are signed by the client root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        match self {
            Self::ClientRoot | Self::ServerRoot | Self::RouteRoot => true,
            Self::Platform | Self::Tenant(_) => false,
        }
    }

    /// The name of its files, without their ends.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self {
            Self::ClientRoot => "client-root".to_owned(),
            Self::ServerRoot => "server-root".to_owned(),
            Self::RouteRoot => "route-root".to_owned(),
            Self::Platform => "platform".to_owned(),
            Self::Tenant(slug) => format!("tenant-{slug}"),
        }
    }

    /// Reads what [`AuthorityName::file_name`] writes.
    #[must_use]
    pub fn from_file_name(name: &str) -> Option<Self> {
        match name.strip_prefix("tenant-") {
            Some(slug) => slug.parse().ok().map(Self::Tenant),
            None => name.parse().ok(),
        }
    }

    /// The label before the trust domain below which an intermediate may name anybody.
    #[must_use]
    pub fn owner(&self) -> Option<String> {
        match self {
            Self::ClientRoot | Self::ServerRoot | Self::RouteRoot => None,
            Self::Platform => Some("platform".to_owned()),
            Self::Tenant(slug) => Some(slug.to_string()),
        }
    }
}

impl fmt::Display for AuthorityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(slug) => write!(f, "tenant/{slug}"),
            Self::ClientRoot | Self::ServerRoot | Self::RouteRoot | Self::Platform => f.write_str(&self.file_name()),
        }
    }
}

impl FromStr for AuthorityName {
    type Err = AuthorityNameError;

    fn from_str(text: &str) -> Result<Self, AuthorityNameError> {
        match text {
            "client-root" => Ok(Self::ClientRoot),
            "server-root" => Ok(Self::ServerRoot),
            "route-root" => Ok(Self::RouteRoot),
            "platform" => Ok(Self::Platform),
            _ => match text.strip_prefix("tenant/") {
                Some(slug) => slug.parse().map(Self::Tenant).map_err(AuthorityNameError::Slug),
                None => Err(AuthorityNameError::Unknown(text.chars().take(60).collect())),
            },
        }
    }
}

impl Serialize for AuthorityName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_nothing_else_is() {
        for text in ["client-root", "server-root", "route-root", "platform", "tenant/acme-corp"] {
            let name: AuthorityName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(AuthorityName::from_file_name(&name.file_name()), Some(name));
        }
        for text in ["", "acme-corp", "tenant/", "tenant/../platform", "tenant/*", "tenant/platform", "Platform"] {
            assert!(text.parse::<AuthorityName>().is_err(), "{text:?}");
        }
    }
}
