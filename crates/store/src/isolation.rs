//! Where a tenant's rows live, by plan.

/// How a tenant's rows are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// In the shared tables, under forced row security.
    Shared,
}

impl Isolation {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
        }
    }

    /// The schema of a tenant with this isolation.
    #[must_use]
    pub fn schema(self) -> &'static str {
        match self {
            Self::Shared => "shared",
        }
    }
}

/// Every plan is shared for now; a schema of one's own is one more arm here and in [`Isolation::schema`].
#[must_use]
pub fn isolation_of(_plan: &str) -> Isolation {
    Isolation::Shared
}
