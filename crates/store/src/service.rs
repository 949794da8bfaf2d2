//! Who asks the database: each service has a role of its own, and in a schema of one tenant one for that tenant.

/// A service with a role in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    Core,
    Registry,
    Dispatch,
}

impl Service {
    pub const ALL: [Self; 3] = [Self::Core, Self::Registry, Self::Dispatch];

    /// The role that it logs in as.
    #[must_use]
    pub fn login(self) -> &'static str {
        match self {
            Self::Core => "bulkhead_core",
            Self::Registry => "bulkhead_registry",
            Self::Dispatch => "bulkhead_dispatch",
        }
    }

    /// The end of its role's name in a schema of one tenant.
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Registry => "registry",
            Self::Dispatch => "dispatch",
        }
    }

    /// Its name in the database's list of connections.
    pub(crate) fn application(self) -> &'static str {
        match self {
            Self::Core => "bulkhead-core",
            Self::Registry => "bulkhead-registry",
            Self::Dispatch => "bulkhead-poller-dispatch",
        }
    }
}
