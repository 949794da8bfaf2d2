//! `bulkhead-bench ingest`: measures, prints each figure as it is there, and writes the page.

use std::path::PathBuf;

use anyhow::Context;
use bulkhead_tests::bench::{Flooded, Grid, render, row, run_flood, run_ingest};
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

// Children are tied to the thread that starts them, so everything runs on the main one.
#[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let (batch, tenants, hub, page) = match Args::parse().what {
        What::Ingest { batch, tenants, hub, page } => (batch, tenants, hub, page),
        What::Flood { batches_per_second } => {
            let Flooded { alone, beside, attack_rows_per_second } = run_flood(batches_per_second).await?;
            println!("alone: p50 {} ms, p99 {} ms ({} results)", alone.p50_ms, alone.p99_ms, alone.results);
            println!(
                "beside {attack_rows_per_second:.0} results/s: p50 {} ms, p99 {} ms",
                beside.p50_ms, beside.p99_ms
            );
            println!("p99 beside to alone: {:.2}", beside.p99_ms as f64 / alone.p99_ms.max(1) as f64);
            return Ok(());
        }
    };
    let grid = Grid { batches: batch, tenants, hub_servers: hub };
    let all = run_ingest(&grid, |measured| println!("{}", row(measured))).await?;
    if let Some(path) = page {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        std::fs::write(&path, replaced(&text, &render(&all))?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
