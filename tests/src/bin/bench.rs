//! `bulkhead-bench ingest`: measures, prints each figure as it is there, and writes the page.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;
use bulkhead_tests::bench::{Cell, Flooded, Grid, Progress, render, row, run_flood, run_ingest};
use clap::{Parser, Subcommand};

const BEGIN: &str = "<!-- ingest: written by `cargo xtask bench ingest` -->";
const END: &str = "<!-- ingest: end -->";

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    version,
    about = "Measures the product, built for release, against real servers."
)]
struct Args {
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
    /// What one tenant's flood costs another: milliseconds until a result is visible, alone and beside it.
    Flood {
        /// Batches of a hundred results that the attacker sends each second.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        batches_per_second: u32,
    },
}

/// Puts `section` between the marks of a page.
fn replaced(page: &str, section: &str) -> anyhow::Result<String> {
    let (head, rest) = page.split_once(BEGIN).context("the page has no mark where the figures begin")?;
    let (_, tail) = rest.split_once(END).context("the page has no mark where the figures end")?;
    Ok(format!("{head}{BEGIN}\n{section}{END}{tail}"))
}

/// Each step on stderr, with the time since the beginning; each figure on stdout.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
async fn ingest(grid: Grid, page: Option<PathBuf>) -> anyhow::Result<()> {
    // A page without marks is found out now, and not when everything is measured.
    let text =
        page.as_ref().map(|path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display())));
    let text = text.transpose()?;
    text.as_deref().map(|text| replaced(text, "")).transpose()?;
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
        std::fs::write(&path, replaced(&text, &render(&all))?).with_context(|| format!("write {}", path.display()))?;
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
    match Args::parse().what {
        What::Ingest { batch, tenants, hub, page } => {
            ingest(Grid { batches: batch, tenants, hub_servers: hub }, page).await
        }
        What::Flood { batches_per_second } => flood(batches_per_second).await,
    }
}
