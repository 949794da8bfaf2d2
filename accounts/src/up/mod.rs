//! `bulkhead up`: the whole product on one machine, from real servers, for trying, developing and testing.
//!
//! What it starts is what an installation runs; what it makes (accounts, certificates, configuration) is final in form.

mod backbone;
pub mod child;
mod connect;
mod deployment;
mod desk;
mod fetch;
mod gatekeepers;
mod home;
mod hub;
mod layout;
mod lives;
mod pins;
mod platform;
mod poller_settings;
mod ports;
mod postgres;
mod preview;
mod rebuild;
mod resize;
mod sharers;
mod site;
mod start;
mod target;
mod tended;
mod tools;
mod wanted;

pub use child::{Child, ChildSpec};
pub use deployment::{Deployment, DeploymentError, Options, Programs, TenantOptions};
pub(crate) use desk::DESK_PORT;
pub use gatekeepers::Gatekeeper;
pub(crate) use hub::remember_size;
pub use hub::{HubPlace, HubServer, hub_size};
pub use layout::Layout;
pub use platform::{
    Accounts, CORE, INTAKE, OPS, Platform, PlatformError, issued_settings, ops_plan, system_settings, tenant_row,
};
pub(crate) use poller_settings::{BusFile, PollerPorts, PollerTold, TlsFile, write_poller_settings, write_settings};
pub use ports::{PortError, free_port};
pub use postgres::{Postgres, PostgresError, SUPERUSER as POSTGRES_SUPERUSER, database_folder};
pub use preview::Source;
pub use rebuild::{Rebuild, RebuiltDatabase, RebuiltHub, unfinished_restore};
pub use site::{DeviceKeys, KEPT, Site, leaf_config, leaf_users};
pub(crate) use site::{
    EndKeys, LeafSettings, SiteError, SiteMaker, SitePlace, ensure_batch_key, keeper, order_for, poller_folder,
};
pub(crate) use target::checks;
pub use target::{CheckSetting, Target, TargetError};
pub use tools::{
    NATS_SERVER_MIN, POSTGRES_MIN, Tool, ToolError, Tools, Version, fetch_postgres, fetch_squawk, find_tools,
};
