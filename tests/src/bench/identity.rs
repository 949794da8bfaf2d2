//! What the gatekeepers cost: connections a second and their times, beside users of AUTH, who are let in by credentials at
//! the same hub in the same run, and a storm of reconnects.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_accounts::hub_files::HUB_CONFIG;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_claims::AccountBody;
use bulkhead_runtime::{Backoff, eventually};
use bulkhead_testkit::{Endpoint, Identity, LIMIT, RawClient, TestDeployment};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::accounts::Times;
use super::leaf_storm::leaf_storm;
use super::report::machine;

pub(super) const TENANT: &str = "first";
pub(super) const SITE: &str = "site";
const RATE_LIMIT: &str = "connection_rate_limit:";
/// More than a storm has.
const CONNECTIONS_MOST: i64 = 20_000;
/// Within which everybody is to be in again after a storm.
pub(super) const STORM_LIMIT: Duration = Duration::from_secs(300);
/// Whoever was refused waits, longer each time and less at random, as our own clients do.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct IdentityPlan {
    /// Connections of each kind and round.
    pub connects: usize,
    /// How many at once.
    pub at_once: Vec<usize>,
    pub rounds: usize,
    /// How many come at once in a storm.
    pub storm: usize,
}

/// One way in, so many at once.
#[derive(Debug, Clone)]
pub struct Entered {
    pub per_second: f64,
    pub times: Times,
}

/// One round.
#[derive(Debug, Clone)]
pub struct Round {
    pub at_once: usize,
    /// By credentials, without a gatekeeper.
    pub direct: Entered,
    /// By certificate.
    pub gated: Entered,
}

/// Many who come at once, each until it is in.
#[derive(Debug, Clone)]
pub struct Storm {
    pub clients: usize,
    /// How many were let in before the limit.
    pub inside: usize,
    /// Until the last of those was.
    pub all_in: Duration,
    /// Attempts that failed on the way.
    pub failed: usize,
}

/// All figures.
#[derive(Debug, Clone)]
pub struct IdentityMeasured {
    pub rounds: Vec<Round>,
    /// One a round.
    pub direct_storms: Vec<Storm>,
    pub gated_storms: Vec<Storm>,
    pub leaf_storm: Storm,
}

/// Who comes, and where to.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) hub: Endpoint,
    pub(super) identity: Identity,
}

impl Way {
    fn new(hub: Endpoint, identity: Identity) -> anyhow::Result<Self> {
        Ok(Self { hub, identity: identity.prepared()? })
    }
}

/// Measures on a deployment of one hub server and two gatekeepers.
///
/// # Errors
/// When something does not start, or somebody is not let in.
pub async fn run_identity(plan: &IdentityPlan, say: &dyn Fn(&str)) -> anyhow::Result<IdentityMeasured> {
    say("starting a deployment");
    let home = TestDeployment::home_folder()?;
    let line = format!("{TENANT} enterprise {SITE}/p1");
    let mut deployment =
        TestDeployment::start_in(home, &[&line], |options| options.hub_servers = Some(HubSize::One)).await?;
    let direct = Way::new(deployment.hub(), deployment.unrestricted_identity("auth").await?)?;
    let gated = Way::new(deployment.hub(), deployment.person_identity(&format!("{TENANT}-admin"))?)?;
    let leaf = Way::new(deployment.hub_for_leaves(), deployment.leaf_identity(TENANT, SITE)?)?;
    for account in ["auth", TENANT] {
        let widen = |body: &mut AccountBody| {
            (body.limits.conn, body.limits.leaf) = (CONNECTIONS_MOST, CONNECTIONS_MOST);
        };
        deployment.change_account(account, widen).await?;
    }
    let limit = lift_limit(&mut deployment)?;
    for way in [&direct, &gated] {
        entered(way).await?;
    }
    let mut rounds = Vec::new();
    for &at_once in &plan.at_once {
        for round in 1..=plan.rounds {
            say(&format!("{at_once} at once, round {round} of {}", plan.rounds));
            let direct = enter_many(&direct, plan.connects, at_once).await.context("by credentials")?;
            let gated = enter_many(&gated, plan.connects, at_once).await.context("by certificate")?;
            rounds.push(Round { at_once, direct, gated });
        }
    }
    limit.put_back(&mut deployment)?;
    for way in [&direct, &gated] {
        entered(way).await?;
    }
    let (mut direct_storms, mut gated_storms) = (Vec::new(), Vec::new());
    for round in 1..=plan.rounds {
        say(&format!("{} at once, round {round} of {}", plan.storm, plan.rounds));
        direct_storms.push(client_storm(&direct, plan.storm).await?);
        gated_storms.push(client_storm(&gated, plan.storm).await?);
    }
    say(&format!("{} leaves whose hub is killed", plan.storm));
    let leaf_storm = leaf_storm(&mut deployment, &leaf, plan.storm).await?;
    deployment.stop().await?;
    Ok(IdentityMeasured { rounds, direct_storms, gated_storms, leaf_storm })
}

/// The hub's configuration with its limit on new connections.
struct LimitedHub {
    config: PathBuf,
    text: String,
}

/// Starts the hub anew without its limit on new connections, which is far below what is measured.
fn lift_limit(deployment: &mut TestDeployment) -> anyhow::Result<LimitedHub> {
    let config = deployment.up.layout.hub().join(HUB_CONFIG);
    let text = std::fs::read_to_string(&config)?;
    let lifted: String =
        text.lines().filter(|line| !line.contains(RATE_LIMIT)).map(|line| format!("{line}\n")).collect();
    ensure!(lifted.lines().count() + 1 == text.lines().count(), "the hub has no limit on new connections");
    std::fs::write(&config, lifted)?;
    deployment.up.hub_child(0).context("the hub")?.restart()?;
    Ok(LimitedHub { config, text })
}

impl LimitedHub {
    fn put_back(self, deployment: &mut TestDeployment) -> anyhow::Result<()> {
        std::fs::write(&self.config, self.text)?;
        Ok(deployment.up.hub_child(0).context("the hub")?.restart()?)
    }
}

async fn entered(way: &Way) -> anyhow::Result<()> {
    let entered = eventually("somebody let in", LIMIT, || async {
        RawClient::connect(&way.hub, &way.identity).await.map_err(|error| format!("{error:?}"))
    });
    Ok(entered.await.map(drop)?)
}

/// On a runtime of its own: the main thread looks after the deployment.
pub(super) async fn beside<T: Send + 'static>(
    work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    let thread = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start a runtime")?;
        runtime.block_on(work)
    });
    thread.await.context("a runtime of its own")?
}

async fn enter_many(way: &Way, connects: usize, at_once: usize) -> anyhow::Result<Entered> {
    let way = way.clone();
    beside(async move {
        let places = Arc::new(Semaphore::new(at_once));
        let mut entering = JoinSet::new();
        let began = Instant::now();
        for _ in 0..connects {
            let place = Arc::clone(&places).acquire_owned().await?;
            let way = way.clone();
            entering.spawn(async move {
                let began = Instant::now();
                let client = RawClient::connect(&way.hub, &way.identity).await;
                let took = began.elapsed();
                drop(place);
                client.map(|_| took)
            });
        }
        let mut times = Vec::new();
        while let Some(entered) = entering.join_next().await {
            times.push(entered?.context("a connection was not let in")?);
        }
        let per_second = connects as f64 / began.elapsed().as_secs_f64();
        Ok(Entered { per_second, times: times.into_iter().collect() })
    })
    .await
}

/// So many who come at once, each until it is in.
async fn client_storm(way: &Way, clients: usize) -> anyhow::Result<Storm> {
    let way = Arc::new(way.clone());
    beside(async move {
        let began = Instant::now();
        let mut entering = JoinSet::new();
        for _ in 0..clients {
            let way = Arc::clone(&way);
            entering.spawn(async move {
                let (mut failed, mut pace) = (0, Backoff::new(PAUSE_FIRST, PAUSE_MOST));
                loop {
                    match RawClient::connect(&way.hub, &way.identity).await {
                        Ok(client) => return (Some(client), failed),
                        Err(_) if began.elapsed() > STORM_LIMIT => return (None, failed),
                        Err(_) => failed += 1,
                    }
                    pace.pause().await;
                }
            });
        }
        let (mut inside, mut failed, mut all_in) = (Vec::new(), 0, Duration::ZERO);
        while let Some(entered) = entering.join_next().await {
            let (client, attempts) = entered?;
            if client.is_some() {
                all_in = began.elapsed();
            }
            inside.extend(client);
            failed += attempts;
        }
        ensure!(inside.iter().all(|client| !client.is_closed()), "somebody who was in is out");
        Ok(Storm { clients, inside: inside.len(), all_in, failed })
    })
    .await
}

fn ratio(round: &Round) -> f64 {
    round.gated.per_second / round.direct.per_second
}

/// The section of the page.
#[must_use]
pub fn render_identity(measured: &IdentityMeasured) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "Machine: {}. One hub server, two gatekeepers.\n", machine());
    page.push_str(
        "| At once | Direct, connects/s | p50, p99 ms | By certificate, connects/s | p50, p99 ms | Ratio |\n\
         |---|---|---|---|---|---|\n",
    );
    for round in &measured.rounds {
        let Round { at_once, direct, gated } = round;
        let _ = writeln!(
            page,
            "| {at_once} | {:.0} | {} | {:.0} | {} | {:.2} |",
            direct.per_second,
            direct.times,
            gated.per_second,
            gated.times,
            ratio(round)
        );
    }
    page.push_str("\n| Storm | Clients | In | Last of them after | Attempts that failed |\n|---|---|---|---|---|\n");
    let direct = measured.direct_storms.iter().map(|storm| ("direct", storm));
    let gated = measured.gated_storms.iter().map(|storm| ("by certificate", storm));
    for (name, storm) in direct.chain(gated).chain([("leaves, by certificate", &measured.leaf_storm)]) {
        let Storm { clients, inside, all_in, failed } = storm;
        let _ = writeln!(page, "| {name} | {clients} | {inside} | {:.1} s | {failed} |", all_in.as_secs_f64());
    }
    page
}
