//! The page that a benchmark writes.

use std::fmt::Write;

use super::ingest::Measured;

/// The machine and how the program was built.
pub(super) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let build = if cfg!(debug_assertions) { "Debug build: the figures mean nothing" } else { "Release build" };
    format!("{cores} cores ({}). {build}", model.unwrap_or("unknown"))
}

/// One line for a terminal, and the row of the page.
#[must_use]
pub fn row(measured: &Measured) -> String {
    let Measured { cell, rows_per_second, unnest_per_second, publish_per_second, machine, .. } = measured;
    let published = publish_per_second * cell.batch as f64;
    let cpu: f64 = measured.cpu_us.iter().filter(|(part, _)| *part != "others").map(|(_, us)| us).sum();
    let parts: Vec<String> = measured.cpu_us.iter().map(|(part, us)| format!("{part} {us:.1}")).collect();
    format!(
        "| {} | {} | {} | {rows_per_second:.0} | {:.0} % | {:.0} % | {unnest_per_second:.0} | {published:.0} | {:.0} s | {:.0} % | {:.0} % | {cpu:.1} | {} |",
        cell.hub_servers,
        cell.tenants,
        cell.batch,
        100.0 * rows_per_second / unnest_per_second,
        100.0 * rows_per_second / published,
        measured.lasted.as_secs_f64(),
        100.0 * machine.idle_share,
        100.0 * machine.disk_share,
        parts.join(", ")
    )
}

/// The section of the page.
#[must_use]
pub fn render(all: &[Measured]) -> String {
    let mut page = String::new();
    let _ = writeln!(page, "Machine: {}.\n", machine());
    page.push_str(
        "| Hub servers | Tenants | Batch | Results/s | of UNNEST | of publish | UNNEST rows/s | Publish rows/s | Lasted | CPU idle | of it waiting for disks | CPU µs/result | of which; others |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for measured in all {
        let _ = writeln!(page, "{}", row(measured));
    }
    page
}
