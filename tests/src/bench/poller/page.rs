//! The section of the page.

use std::fmt::Write;

use super::{Figures, PollerCell, PollerMeasured, Prober};
use crate::bench::report::machine;

const MIB: f64 = 1_048_576.0;

fn ours_beside<'a>(cells: &'a [PollerCell], cell: &PollerCell) -> Option<&'a Figures> {
    let is_ours =
        |other: &&PollerCell| other.prober == Prober::Ours && (other.kind, other.checks) == (cell.kind, cell.checks);
    cells.iter().find(is_ours)?.figures.as_ref().ok()
}

/// What fits into a table.
fn in_cell(why: &str) -> String {
    why.lines().next().unwrap_or_default().replace('|', "/")
}

fn row(cells: &[PollerCell], cell: &PollerCell) -> String {
    let (kind, checks, name) = (cell.kind.as_str(), cell.checks, cell.prober.name());
    let figures = match &cell.figures {
        Ok(figures) => figures,
        Err(why) => return format!("| {kind} | {checks} | {name} | no figure: {} | | | | | | |", in_cell(why)),
    };
    let ratio = match cell.prober {
        Prober::Ours => "–".to_owned(),
        Prober::Blackbox | Prober::Cloudprober => ours_beside(cells, cell)
            .map_or("–".to_owned(), |ours| format!("{:.1}x", ours.per_cpu_second / figures.per_cpu_second)),
    };
    let leaf = figures.leaf_us.map(|us| format!(" (leaf {us:.0})")).unwrap_or_default();
    let resident = figures.resident_bytes as f64 / MIB;
    format!(
        "| {kind} | {checks} | {name} | {:.0} | {:.2} % | {:.0} | {:.0}{leaf} | {ratio} | {resident:.0}, {:.1} | {:.0} % |",
        figures.per_second,
        100.0 * figures.failed_share,
        figures.per_cpu_second,
        1e6 / figures.per_cpu_second,
        resident * 1_000.0 / checks as f64,
        100.0 * figures.idle_share
    )
}

/// The section of the page.
#[must_use]
pub fn render_poller(measured: &PollerMeasured) -> String {
    let PollerMeasured { plan, cells, spread } = measured;
    let mut page = String::new();
    let _ = writeln!(page, "Machine: {}. {} s a row.\n", machine(), plan.lasts.as_secs());
    page.push_str(
        "| Kind | Checks of a second | Program | Checks/s | Failed | Checks per CPU-second | CPU µs/check | Ours to it | RSS MiB, per 1,000 checks | CPU idle |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for cell in cells {
        let _ = writeln!(page, "{}", row(cells, cell));
    }
    match spread {
        None => {}
        Some(Err(why)) => {
            let _ = writeln!(page, "\nHow starts are spread: no figure: {}.", in_cell(why));
        }
        Some(Ok(spread)) => {
            let _ = writeln!(
                page,
                "\n{} checks of 10 s, 5,000 a poller, {} starts: at most {} in a tenth of a second, {:.2} times the mean \
                 (goal: at most 1.5); 99 % began at most {} ms after their slot.",
                spread.checks, spread.started, spread.most, spread.most_to_mean, spread.late_p99_ms
            );
        }
    }
    page
}
