//! Attackers, bad networks and watchers, for tests only.
//!
//! Attackers here are free of every rule that honest clients keep: whatever they are not able to do, a server refused.
//! Nothing in this crate stands in for a server.

mod cluster;
pub mod database;
pub mod deployment;
mod dial;
mod everywhere;
mod exposition;
mod fake_hub;
mod forger;
mod go_tools;
mod identity;
mod leaf;
mod log_gate;
mod paper;
mod pgbouncer;
mod ports;
mod proxy;
mod raw;
mod route;
pub mod scrape;
mod session;
mod settings;
pub mod sql;
mod wire;

pub use bulkhead_runtime::eventually;
pub use database::TestDatabase;
pub use deployment::{LIMIT, StoppedDeployment, TestDeployment};
pub use dial::ConnectError;
pub use exposition::{Exposition, Family, Kind, Malformed, Sample};
pub use fake_hub::{FakeHub, Visit};
pub use forger::{Forged, Forger, client_params};
pub use go_tools::{GoTool, go_tool};
pub use identity::{CertificatePair, Endpoint, Handshake, Identity};
pub use leaf::RawLeaf;
pub use log_gate::{LogGate, LogGateError};
pub use paper::platform_on_paper;
pub use pgbouncer::PgBouncer;
pub use ports::free_ports;
pub use proxy::{Link, Losses, TcpProxy};
pub use raw::{RawClient, header_block};
pub use route::{RouteOutcome, try_route};
pub use session::{Closed, Flushed};
pub use settings::{find_test_tools, squawk};
pub use wire::RawMessage;
