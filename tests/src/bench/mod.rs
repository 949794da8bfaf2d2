//! How fast the proven path is (results per second and CPU per result from the leaf's stream to the committed row), and
//! what it costs to provision tenants and to let somebody in.
//!
//! Every figure stands beside what the same machine reaches in the same run with nothing but a JetStream publish or
//! nothing but an UNNEST insert: ratios survive a slow machine, absolute numbers do not.

mod accounts;
mod baseline;
mod cpu;
mod dispatch;
mod fleet;
mod flood;
mod identity;
mod ingest;
mod leaf_storm;
mod load;
mod poller;
mod report;
mod store;

pub use accounts::{
    AccountsMeasured, AccountsPlan, AtSize, OfficialTool, Onboarding, Part, PuttingOut, Restart, Revocations, Signing,
    Times, TokenTimes, render_accounts, run_accounts,
};
pub use cpu::Spent;
pub use dispatch::{DispatchMeasured, DispatchPlan, Planned, render_dispatch, run_dispatch};
pub use fleet::Station;
pub use flood::{Attack, Delays, Flooded, run_flood};
pub use identity::{Entered, IdentityMeasured, IdentityPlan, Round, Storm, render_identity, run_identity};
pub use ingest::{Cell, Grid, Measured, Progress, run_ingest};
pub use load::{Loaded, fill_all};
pub use poller::{
    Figures, PollerCell, PollerMeasured, PollerPlan, ProbeKind, Prober, Spread, render_poller, run_poller,
};
pub use report::{render, row};
pub use store::{StoreMeasured, StorePlan, Stored, render_store, run_store};
