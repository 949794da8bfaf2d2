//! Checks as a tenant's configuration, shared out among pollers: who runs what, who takes over, and that no slot is without a
//! result or a reason. All processes are real; pollers, services and the hub are killed.

mod losses;
mod people;
mod world;
