//! What provisioning costs as a platform grows: onboarding, the official tool beside it, tokens, revocation, the hub.
//!
//! Between the sizes tenants come by a quick path; what is measured at a size takes the way of the commands.

mod nsc;
mod onboarding;
mod putting_out;
mod restart;
mod revocation;
mod signing;
mod tables;
mod times;
mod town;

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_testkit::{GoTool, go_tool};
use clap::ValueEnum;

pub use nsc::OfficialTool;
pub use onboarding::Onboarding;
pub use putting_out::PuttingOut;
pub use restart::Restart;
pub use revocation::Revocations;
pub use signing::{Signing, TokenTimes};
pub use tables::render_accounts;
pub use times::Times;

use nsc::Nsc;
use town::Town;

/// Of pollers, sites and tenants fewer are put out than of people: each takes an onboarding.
const PUT_OUT_SHARE: usize = 2;

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Part {
    /// `tenant add`, and the first batch of a new tenant.
    Onboarding,
    /// `nsc add account` and `nsc push`.
    Nsc,
    /// Account tokens signed, decoded and validated, beside the Go library.
    Signing,
    /// From a revocation to the end of the connection.
    Revocation,
    /// The hub killed, until results flow again.
    Restart,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct AccountsPlan {
    pub parts: BTreeSet<Part>,
    /// How many tenants there are when something is measured, growing.
    pub sizes: Vec<usize>,
    /// Onboardings at each size.
    pub samples: usize,
    /// Runs of a program at each size.
    pub runs: usize,
    pub tokens: usize,
    pub revocations: usize,
}

/// The figures of one size of the platform.
#[derive(Debug, Clone)]
pub struct AtSize {
    /// How many tenants there were when the first was sampled, and after the last.
    pub tenants: (usize, usize),
    pub onboarding: Option<Onboarding>,
    /// `None` where there is no Go to build nsc with.
    pub nsc: Option<OfficialTool>,
    pub revocations: Option<Revocations>,
    pub putting_out: Option<PuttingOut>,
    /// What the hub has in memory.
    pub hub_bytes: u64,
    /// How long the quick path took from the size before, and for how many.
    pub filled: (usize, Duration),
}

/// Everything of one run.
#[derive(Debug, Clone, Default)]
pub struct AccountsMeasured {
    pub signing: Option<Signing>,
    pub sizes: Vec<AtSize>,
    pub restart: Option<Restart>,
}

/// Measures the parts that are asked for; `say` hears each step.
///
/// # Errors
/// When something does not start, or what is measured fails.
pub async fn run_accounts(plan: &AccountsPlan, say: &dyn Fn(&str)) -> anyhow::Result<AccountsMeasured> {
    let mut measured = AccountsMeasured::default();
    let wants = |part| plan.parts.contains(&part);
    if wants(Part::Signing) {
        say(&format!("tokens of {} accounts, by the Go library and by us", plan.tokens));
        measured.signing = Some(signing::run_signing(plan.tokens)?);
    }
    if plan.parts.iter().all(|part| *part == Part::Signing) {
        return Ok(measured);
    }
    let nsc = if wants(Part::Nsc) { go_tool(GoTool::Nsc)? } else { None };
    say("starting a deployment");
    let mut town = Town::start().await?;
    let last = plan.sizes.iter().max().copied();
    for &size in &plan.sizes {
        let added = if wants(Part::Onboarding) { plan.samples + plan.runs } else { 0 };
        let filled = town.fill(size.saturating_sub(added), say).await?;
        let first = town.tenants();
        let onboarding = if wants(Part::Onboarding) {
            say(&format!("{first} tenants: onboarding"));
            Some(onboarding::measure(&mut town, plan.samples, plan.runs).await?)
        } else {
            None
        };
        let mut at_size = AtSize {
            tenants: (first, town.tenants()),
            onboarding,
            nsc: None,
            revocations: None,
            putting_out: None,
            hub_bytes: town.hub_bytes()?,
            filled,
        };
        if let Some(program) = &nsc {
            say(&format!("{} tenants: nsc", town.tenants()));
            at_size.nsc = Some(Nsc::start(program, &town).await?.measure(plan.runs)?);
        }
        // Revoking is to cost the same however many tenants there are, so both ends are looked at.
        if wants(Part::Revocation) && (Some(size) == last || measured.sizes.is_empty()) {
            say(&format!("{} tenants: revocation", town.tenants()));
            at_size.revocations = Some(revocation::measure(&mut town, plan.revocations).await?);
            say(&format!("{} tenants: putting pollers, sites and tenants out", town.tenants()));
            at_size.putting_out = Some(putting_out::measure(&mut town, plan.revocations / PUT_OUT_SHARE).await?);
        }
        say(&tables::line(&at_size));
        measured.sizes.push(at_size);
    }
    if wants(Part::Restart) {
        say(&format!("{} tenants: the hub is killed and started again", town.tenants()));
        measured.restart = Some(restart::measure(&mut town).await?);
    }
    town.stop().await?;
    Ok(measured)
}
