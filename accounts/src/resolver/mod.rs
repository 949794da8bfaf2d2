//! Everything that is said to nats-servers about accounts, over a connection in the system account.
//!
//! A `200` means stored, not in force (facts: accounts-and-nsc, finding 1): what counts is what each server shows that it
//! has in memory. Servers are known by name, so that one that is missing is named.

mod asking;
mod blast;
mod compare;
mod connections;
mod delete;
mod difference;
mod drain;
mod held;
mod leftovers;
mod list;
mod operator_keys;
mod probe;
mod push;
mod push_many;
mod push_record;
mod refusal;
mod standing;

pub use asking::{KnownServers, NotAsked, ServerFacts, servers};
pub use blast::{AccountChange, Reason, blast_radius};
pub use compare::{AccountLayers, Difference, Layer, Presence, compare, compare_presence};
pub use connections::{ConnectionFacts, ConnectionKind, KickError, ShownCertificate, connections, kick, name_roles};
pub use delete::{Deletion, DeletionReport, SYNC_INTERVAL, ensure_deleted, ensure_stays_deleted};
pub use difference::{FieldDifference, field_differences};
pub use drain::{DrainError, Draining, drain};
pub use held::{Base, Held, token_hash};
pub use leftovers::{StreamLeftover, account_streams};
pub use list::{HeldAccounts, in_memories, in_memory, list, on_disk, pull};
pub use operator_keys::{accounts_signed_by, servers_without_key};
pub use probe::{ProbeOutcome, ProbeResult, probe};
pub use push::{Order, Patience, PushError, PushReport, ServerReport, push_order};
pub use push_many::{PushedMany, push_many};
pub use push_record::push;
pub use refusal::Refusal;
pub use standing::Missing;
