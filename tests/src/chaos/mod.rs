//! Breaks a running deployment at random, from a seed, and proves that no acknowledged result was lost.
//!
//! Reading order: what can go wrong and when (`plan`), what it is done to (`world`, `shares`, `disk`, `clock`), how
//! (`faults`), what is sent meanwhile (`ledger`), and whether the books balance (`books`). It judges by the database and the
//! servers, never by what the services say of themselves alone.

pub mod books;
mod clock;
mod disk;
mod faults;
mod ledger;
mod plan;
mod run;
mod shares;
mod world;

pub use disk::Disks;
pub use plan::{Fault, Plan, Storm, ledger_of};
pub use run::{Report, run};
pub use world::{Tenant, World};
