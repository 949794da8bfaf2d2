//! NATS decentralized auth for Bulkhead: keys, claims, certificates, plans, provisioning, and the `bulkhead` command.
//!
//! This is the tool that creates and renders; it never sits in the path of a result.

pub mod backup;
pub mod bundle;
pub mod certificates;
pub mod cli;
pub mod client;
pub mod doctor;
pub mod enrolment;
pub mod files;
pub mod gate;
pub mod gatekeeper_files;
pub mod hub_files;
pub mod hub_size;
pub mod hub_state;
pub mod keys;
pub mod nats_config;
pub mod operator;
pub mod plan;
pub mod profile;
pub mod provisioning_lock;
mod reason;
pub mod render;
pub mod resolver;
pub mod seal;
pub mod signers;
pub mod tenancy;
pub mod up;
