//! `bulkhead-chaos --runs N --seed S`: breaks a deployment of its own N times and prints the books of each run.

use std::ops::RangeInclusive;
use std::process::ExitCode;

use anyhow::Context;
use bulkhead_tests::chaos::{Disks, Plan, Storm, World, run};
use clap::Parser;

/// Breaks a deployment while results flow, and adds up what was sent, stored, refused and dead-lettered.
///
/// Ends with 0 when every run balances, and with 1 at the first that does not; then the seed repeats it, and the state
/// folder is kept for a look.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", version)]
struct Args {
    /// How many runs, with seeds counting up from --seed.
    #[arg(long, default_value_t = 1, value_parser = |text: &str| whole(text, 1..=1_000_000))]
    runs: u64,
    /// The seed of the first run: everything that goes wrong follows from it.
    #[arg(long, default_value_t = 1, value_parser = |text: &str| whole(text, 0..=u64::MAX))]
    seed: u64,
    /// Faults in one run.
    #[arg(long, default_value_t = 3, value_parser = |text: &str| whole(text, 1..=20), conflicts_with = "everything")]
    faults: u64,
    /// Every kind of fault once in each run, one after the other, in random order.
    #[arg(long)]
    everything: bool,
    /// Only faults whose description contains this, such as "full disk of leaf".
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// This process may mount and is in a mount namespace of its own; `cargo xtask chaos` says so where it is.
    #[arg(long, hide = true)]
    small_disks: bool,
    /// Hub servers: 1 or 3.
    #[arg(long, default_value = "1", value_parser = ["1", "3"])]
    hub: String,
}

fn whole(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("write a whole number from {} to {}", range.start(), range.end()))
}

fn counted_runs(count: u64) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

#[expect(clippy::print_stdout, reason = "the books are what this program is for")]
async fn all_runs(args: &Args) -> anyhow::Result<bool> {
    let mut world = World::start(args.hub.parse()?, if args.small_disks { Disks::Small } else { Disks::Shared })
        .await
        .context("start a deployment")?;
    let storm = if args.everything { Storm::Everything } else { Storm::Faults(usize::try_from(args.faults)?) };
    for number in 0..args.runs {
        let mut plan = Plan::draw(args.seed.wrapping_add(number), storm, world.surface());
        if let Some(text) = &args.only {
            plan.keep_only(text);
            anyhow::ensure!(
                plan.faults().count() > 0,
                "no fault of seed {} is described by {text:?}: use --everything",
                plan.seed
            );
        }
        println!("run {} of {}: {plan}", number + 1, args.runs);
        let ended = run(&mut world, plan).await;
        let is_balanced = match &ended {
            Ok(report) => {
                println!("{report}");
                report.is_balanced()
            }
            Err(error) => {
                println!("  {error:#}");
                false
            }
        };
        if !is_balanced {
            let home = world.deployment.keep();
            println!(
                "NOT BALANCED: repeat with --seed {}; state and logs are in {}",
                args.seed.wrapping_add(number),
                home.display()
            );
            return Ok(false);
        }
    }
    let last = args.seed.wrapping_add(args.runs - 1);
    println!("{} balanced, seeds {} to {last}", counted_runs(args.runs), args.seed);
    world.deployment.stop().await?;
    Ok(true)
}

// Children are tied to the thread that starts them, so everything runs on the main one.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    Ok(if all_runs(&args).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_refused_with_the_rule() {
        for (option, bad) in
            [("--runs", "0"), ("--runs", "abc"), ("--seed", "abc"), ("--seed", "-1"), ("--faults", "21")]
        {
            let error = Args::try_parse_from(["chaos", &format!("{option}={bad}")]).unwrap_err().to_string();
            assert!(error.contains("write a whole number from"), "{option} {bad}: {error}");
        }
        assert!(Args::try_parse_from(["chaos", "--runs", "2", "--seed", "0", "--faults", "20"]).is_ok());
        assert_eq!([counted_runs(1), counted_runs(2)], ["1 run", "2 runs"]);
    }
}
