//! The words of the bus: typed names, the one table of subjects, payloads, headers and `TenantGuard`.
//!
//! Everything here is pure: no sockets, no clocks, no files. Services, the CLI, the account templates, the stream
//! definitions and the docs all derive from [`table`], so that a subject is spelled in one place only.
//! It refuses to build a subject from text that has not become a type first.

mod account_key;
pub mod bundle;
pub mod gate;
mod grid;
mod guard;
pub mod header;
pub mod members;
mod name;
pub mod payload;
mod permission;
pub mod question;
mod stream;
mod subject;
pub mod table;

pub use account_key::{AccountKey, AccountKeyError, BatchKey, BatchKeyError};
pub use grid::Grid;
pub use guard::{
    Account, Audience, Claim, Claimed, Guarded, Refusal, Scope, Tenant, TenantId, TenantSnapshot, TenantState,
    UnknownState,
};
pub use members::{LeaseClass, MemberKey};
pub use name::{CheckName, MemberName, NameError, PollerName, SiteName, TenantSlug, UserName};
pub use permission::{EdgeRole, Permissions, edge_permissions, role_permissions};
pub use stream::{ConsumerSpec, MAX_BATCH_BYTES, StreamName, StreamSpec};
pub use subject::{
    AssignmentVerb, CoreSubject, CoreVerb, DispatchVerb, EdgeSubject, Lane, LeaseVerb, LiveKind, RegistryEvent,
    RegistryVerb, ServiceVerb, SubjectError, TenantSubject, WakeUp,
};
pub use table::{Head, Role, SUBJECTS, SubjectRow, Way};
