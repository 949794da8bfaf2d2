//! `bulkhead-bench`: measures, prints each figure as it is there, and writes the page.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_tests::bench::{
    AccountsPlan, Cell, DispatchPlan, Flooded, Grid, IdentityPlan, Part, PollerPlan, ProbeKind, Progress, StorePlan,
    render, render_accounts, render_dispatch, render_identity, render_poller, render_store, row, run_accounts,
    run_dispatch, run_flood, run_identity, run_ingest, run_poller, run_store,
};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// A part of the page that a command rewrites.
struct Section {
    begin: &'static str,
    end: &'static str,
}

const INGEST: Section =
    Section { begin: "<!-- ingest: written by `cargo xtask bench ingest` -->", end: "<!-- ingest: end -->" };
const ACCOUNTS: Section =
    Section { begin: "<!-- accounts: written by `cargo xtask bench accounts` -->", end: "<!-- accounts: end -->" };

const IDENTITY: Section =
    Section { begin: "<!-- identity: written by `cargo xtask bench identity` -->", end: "<!-- identity: end -->" };

const STORE: Section =
    Section { begin: "<!-- store: written by `cargo xtask bench store` -->", end: "<!-- store: end -->" };

const DISPATCH: Section =
    Section { begin: "<!-- dispatch: written by `cargo xtask bench dispatch` -->", end: "<!-- dispatch: end -->" };

const POLLER: Section =
    Section { begin: "<!-- poller: written by `cargo xtask bench poller` -->", end: "<!-- poller: end -->" };

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    version,
    about = "Measures the product, built for release, against real servers."
)]
struct CommandLine {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Results per second and CPU per result, from the leaf's stream to the committed row.
    Ingest {
        /// Results in a batch.
        #[arg(long, value_delimiter = ',', default_value = "100,10,1")]
        batch: Vec<usize>,
        #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
        tenants: Vec<usize>,
        /// Hub servers: 1 or 3.
        #[arg(long, value_delimiter = ',', default_value = "1,3")]
        hub: Vec<usize>,
        /// Write the figures between the marks in this page, such as docs/benchmarks.md.
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
    },
    /// What it costs to provision tenants as they grow in number, beside nsc and the Go library.
    Accounts(AccountsArgs),
    /// Connections a second with and without the gatekeepers, and a storm of reconnects.
    Identity(IdentityArgs),
    /// The database alone: storing with tenants kept apart, schemas, a large history, and a plan that moves rows.
    Store(StoreArgs),
    /// Sharing checks out: a large plan, the way of a change to the poller, and how soon a lost one is taken over.
    Dispatch(DispatchArgs),
    /// Checks per CPU-second and memory of the poller, beside blackbox_exporter and cloudprober, and how its starts are spread.
    Poller(PollerArgs),
    /// What one tenant's flood costs another: milliseconds until a result is visible, alone and beside it.
    Flood {
        /// Batches of a hundred results that the attacker sends each second.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        batches_per_second: u32,
    },
}

#[derive(Debug, Args)]
struct IdentityArgs {
    /// Connections of each kind in a round.
    #[arg(long, default_value_t = 2_000)]
    connects: usize,
    /// How many at once.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    at_once: Vec<usize>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many come at once in a storm.
    #[arg(long, default_value_t = 3_000)]
    storm: usize,
    /// Write the figures between the marks in this page, such as docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DispatchArgs {
    #[arg(long, default_value_t = 100_000)]
    checks: usize,
    #[arg(long, default_value_t = 200)]
    pollers: usize,
    /// Changes whose way to the poller is timed.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Pollers that are killed, in each class of lease.
    #[arg(long, default_value_t = 5)]
    losses: usize,
    /// Write the figures between the marks in this page, such as docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PollerArgs {
    /// What is checked.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = ProbeKind::value_variants().to_vec())]
    kinds: Vec<ProbeKind>,
    /// How many checks of one second.
    #[arg(long, value_delimiter = ',', default_value = "300,1000,5000", value_parser = read_checks)]
    checks: Vec<usize>,
    /// How long each is measured; whole tens, because cloudprober shows its counts so often.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(10..=600))]
    seconds: u64,
    /// Checks of ten seconds whose starts are looked at; 0 for none.
    #[arg(long, default_value_t = 10_000)]
    spread: usize,
    /// Write the figures between the marks in this page, such as docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StoreArgs {
    /// Rows of the history that is asked.
    #[arg(long, default_value_t = 10_000_000)]
    history: u64,
    /// Rows of the tenant that is moved.
    #[arg(long, default_value_t = 1_000_000)]
    moved: u64,
    /// Write the figures between the marks in this page, such as docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct AccountsArgs {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().to_vec())]
    part: Vec<Part>,
    /// How many tenants there are when something is measured, growing.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,10000")]
    sizes: Vec<usize>,
    /// Onboardings at each size.
    #[arg(long, default_value_t = 20)]
    samples: usize,
    /// Runs of `bulkhead tenant add` and of nsc at each size.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Account tokens signed and validated.
    #[arg(long, default_value_t = 10_000)]
    tokens: usize,
    /// People who are put out, at the first and at the last size.
    #[arg(long, default_value_t = 60)]
    revocations: usize,
    /// Write the figures between the marks in this page, such as docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

fn read_checks(text: &str) -> Result<usize, String> {
    let checks = text.parse().ok().filter(|checks| (1..=5_000).contains(checks));
    checks.ok_or_else(|| "is not a number from 1 to 5000, as many as a poller takes in its own settings".to_owned())
}

/// Puts figures between the marks of a section of a page.
fn replaced(page: &str, section: &Section, figures: &str) -> anyhow::Result<String> {
    let Section { begin, end } = section;
    let (head, rest) = page.split_once(begin).context("the page has no mark where the figures begin")?;
    let (_, tail) = rest.split_once(end).context("the page has no mark where the figures end")?;
    Ok(format!("{head}{begin}\n{figures}{end}{tail}"))
}

/// A page without marks is found out before anything is measured.
fn read_page(page: Option<&Path>, section: &Section) -> anyhow::Result<Option<String>> {
    let Some(path) = page else { return Ok(None) };
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    replaced(&text, section, "")?;
    Ok(Some(text))
}

/// Each step on stderr, with the time since the beginning; the figures on stdout when all of them are there.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn accounts(args: AccountsArgs) -> anyhow::Result<()> {
    let AccountsArgs { part, mut sizes, samples, runs, tokens, revocations, page } = args;
    let text = read_page(page.as_deref(), &ACCOUNTS)?;
    sizes.sort_unstable();
    let plan = AccountsPlan { parts: part.into_iter().collect(), sizes, samples, runs, tokens, revocations };
    let began = Instant::now();
    let say = |step: &str| {
        let seconds = began.elapsed().as_secs();
        eprintln!("[{:2}:{:02}] {step}", seconds / 60, seconds % 60);
    };
    let figures = render_accounts(&run_accounts(&plan, &say).await?);
    print!("{figures}");
    if let Some((path, text)) = page.zip(text) {
        let text = replaced(&text, &ACCOUNTS, &figures)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Each step on stderr, with the time since the beginning; the figures on stdout when all of them are there.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn identity(args: IdentityArgs) -> anyhow::Result<()> {
    let IdentityArgs { connects, at_once, rounds, storm, page } = args;
    let text = read_page(page.as_deref(), &IDENTITY)?;
    let began = Instant::now();
    let say = |step: &str| {
        let seconds = began.elapsed().as_secs();
        eprintln!("[{:2}:{:02}] {step}", seconds / 60, seconds % 60);
    };
    let figures = render_identity(&run_identity(&IdentityPlan { connects, at_once, rounds, storm }, &say).await?);
    print!("{figures}");
    if let Some((path, text)) = page.zip(text) {
        let text = replaced(&text, &IDENTITY, &figures)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Each step on stderr, with the time since the beginning; the figures on stdout when all of them are there.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn store(args: StoreArgs) -> anyhow::Result<()> {
    let StoreArgs { history, moved, page } = args;
    let text = read_page(page.as_deref(), &STORE)?;
    let began = Instant::now();
    let say = |step: &str| {
        let seconds = began.elapsed().as_secs();
        eprintln!("[{:2}:{:02}] {step}", seconds / 60, seconds % 60);
    };
    let figures = render_store(&run_store(StorePlan { history, moved }, &say).await?);
    print!("{figures}");
    if let Some((path, text)) = page.zip(text) {
        let text = replaced(&text, &STORE, &figures)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Each step on stderr, with the time since the beginning; the figures on stdout when all of them are there.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn dispatch(args: DispatchArgs) -> anyhow::Result<()> {
    let DispatchArgs { checks, pollers, changes, losses, page } = args;
    let text = read_page(page.as_deref(), &DISPATCH)?;
    let began = Instant::now();
    let say = |step: &str| {
        let seconds = began.elapsed().as_secs();
        eprintln!("[{:2}:{:02}] {step}", seconds / 60, seconds % 60);
    };
    let figures = render_dispatch(&run_dispatch(DispatchPlan { checks, pollers, changes, losses }, &say).await?);
    print!("{figures}");
    if let Some((path, text)) = page.zip(text) {
        let text = replaced(&text, &DISPATCH, &figures)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Each step on stderr, with the time since the beginning; the figures on stdout when all of them are there.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn poller(args: PollerArgs) -> anyhow::Result<()> {
    let PollerArgs { kinds, checks, seconds, spread, page } = args;
    let text = read_page(page.as_deref(), &POLLER)?;
    let began = Instant::now();
    let say = |step: &str| {
        let seconds = began.elapsed().as_secs();
        eprintln!("[{:2}:{:02}] {step}", seconds / 60, seconds % 60);
    };
    let plan = PollerPlan { kinds, checks, lasts: Duration::from_secs(seconds), spread_checks: spread };
    let figures = render_poller(&run_poller(plan, &say).await?);
    print!("{figures}");
    if let Some((path, text)) = page.zip(text) {
        let text = replaced(&text, &POLLER, &figures)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Each step on stderr, with the time since the beginning; each figure on stdout.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn ingest(grid: Grid, page: Option<PathBuf>) -> anyhow::Result<()> {
    let text = read_page(page.as_deref(), &INGEST)?;
    let began = Instant::now();
    let cells = grid.batches.len() * grid.tenants.len() * grid.hub_servers.len();
    let done = AtomicUsize::new(0);
    let all = run_ingest(&grid, |progress| {
        let seconds = began.elapsed().as_secs();
        let at = format!("[{:2}:{:02}, {} of {cells} done]", seconds / 60, seconds % 60, done.load(Ordering::Relaxed));
        match progress {
            Progress::Starting { tenants, hub_servers } => {
                eprintln!("{at} starting a deployment: {tenants} tenants, {hub_servers} hub servers");
            }
            Progress::Step(Cell { batch, tenants, hub_servers }, step) => {
                eprintln!("{at} {hub_servers} hub servers, {tenants} tenants, batches of {batch}: {step}");
            }
            Progress::Done(measured) => {
                done.fetch_add(1, Ordering::Relaxed);
                println!("{}", row(measured));
            }
        }
    });
    let all = all.await?;
    if let Some((path, text)) = page.zip(text) {
        std::fs::write(&path, replaced(&text, &INGEST, &render(&all))?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn flood(batches_per_second: u32) -> anyhow::Result<()> {
    let Flooded { alone, beside, asked, attack } = run_flood(batches_per_second).await?;
    println!("alone: p50 {} ms, p99 {} ms ({} results)", alone.p50_ms, alone.p99_ms, alone.results);
    println!(
        "attack: {:.0} results/s sent, {asked:.0} asked for; the leaf refused {} batches",
        attack.rows_per_second, attack.refused
    );
    println!("beside it: p50 {} ms, p99 {} ms ({} results)", beside.p50_ms, beside.p99_ms, beside.results);
    println!("p99 beside to alone: {:.2}", beside.p99_ms as f64 / alone.p99_ms.max(1) as f64);
    Ok(())
}

// Children are tied to the thread that starts them, so everything runs on the main one.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match CommandLine::parse().what {
        What::Ingest { batch, tenants, hub, page } => {
            ingest(Grid { batches: batch, tenants, hub_servers: hub }, page).await
        }
        What::Accounts(args) => accounts(args).await,
        What::Identity(args) => identity(args).await,
        What::Store(args) => store(args).await,
        What::Dispatch(args) => dispatch(args).await,
        What::Poller(args) => poller(args).await,
        What::Flood { batches_per_second } => flood(batches_per_second).await,
    }
}
