//! Who is who, for services that the database tells: tenants and their pollers' batch keys, kept fresh, and how the database
//! answers. It holds no rules about what anybody may do, and writes nothing.

mod answers;
mod directory;
mod open;

pub use answers::{Answers, Failure, PoolState, show_connections};
pub use directory::Directory;
pub use open::{DatabaseSettings, address_problems, open_store};
