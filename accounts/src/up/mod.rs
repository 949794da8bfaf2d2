//! `bulkhead up`: the whole product on one machine, from real servers, for trying, developing and testing.
//!
//! What it starts is what an installation runs; what it makes (accounts, certificates, configuration) is final in form.

mod backbone;
pub mod child;
mod deployment;
mod fetch;
mod home;
mod hub;
mod layout;
mod pins;
mod platform;
mod ports;
mod postgres;
mod resize;
mod site;
mod start;
mod target;
mod tools;

pub use deployment::{Deployment, DeploymentError, Options, Programs, TenantOptions};
pub use hub::{HubPlace, HubServer, hub_size};
pub use layout::Layout;
pub use platform::{Accounts, CORE, INTAKE, OPS, Platform, PlatformError, TenantPlan, system_settings};
pub use postgres::{Postgres, PostgresError};
pub use site::Site;
pub use target::{CheckSetting, Target, TargetError};
pub use tools::{NATS_SERVER_MIN, POSTGRES_MIN, Tool, ToolError, Tools, Version, find_tools};
