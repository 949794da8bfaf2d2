//! cloudprober, with a schedule of its own: one probe with all targets, and for ICMP several, because it sends to the targets of
//! one probe a millisecond apart.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use bulkhead_accounts::up::Child;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, free_ports, scrape};
use tempfile::TempDir;

use super::ours::start_child;
use super::target::address_of_check;
use super::{Counts, ProbeKind, Work};

/// Of one ping probe, so that it is through well before its next second.
const PING_TARGETS: usize = 400;

pub(super) struct Cloudprober {
    _folder: TempDir,
    port: u16,
    prober: Child,
}

/// Its type, and what it is told beside the defaults: targets begin a millisecond apart instead of ten, and a ping is one packet.
fn settings(kind: ProbeKind) -> (&'static str, &'static str) {
    match kind {
        ProbeKind::Tcp => ("TCP", "tcp_probe { interval_between_targets_msec: 1 }"),
        ProbeKind::Http => ("HTTP", "http_probe { interval_between_targets_msec: 1 }"),
        ProbeKind::Icmp => ("PING", "ping_probe { packets_per_probe: 1 use_datagram_socket: false }"),
    }
}

fn config(work: &Work<'_>, port: u16) -> anyhow::Result<String> {
    let mut text = format!("host: \"127.0.0.1\"\nport: {port}\nsurfacer {{ type: PROMETHEUS }}\n");
    let (kind, probe) = settings(work.kind);
    let per_probe = match work.kind {
        ProbeKind::Tcp | ProbeKind::Http => work.checks.max(1),
        ProbeKind::Icmp => PING_TARGETS,
    };
    let numbers: Vec<usize> = (0..work.checks).collect();
    for (index, numbers) in numbers.chunks(per_probe).enumerate() {
        let (interval_s, timeout_ms) = (work.interval_s, work.timeout_ms);
        writeln!(
            text,
            "probe {{\n  name: \"p{index}\"\n  type: {kind}\n  interval: \"{interval_s}s\"\n  timeout_msec: {timeout_ms}\n  {probe}\n  targets {{"
        )?;
        for number in numbers {
            let address = address_of_check(work.kind, *number)?;
            let port = work.target.port(work.kind).map(|port| format!("port: {port} ")).unwrap_or_default();
            writeln!(text, "    endpoint {{ name: \"check-{number}\" ip: \"{address}\" {port}}}")?;
        }
        text.push_str("  }\n}\n");
    }
    Ok(text)
}

/// The sum of a metric over all targets.
fn sum(page: &str, name: &str) -> u64 {
    let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    // Behind the labels stand the value and when it was taken.
    let values = lines.filter_map(|line| line.rsplit_once('}')?.1.split_whitespace().next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

impl Cloudprober {
    pub(super) async fn start(program: &Path, work: &Work<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let [port] = free_ports()?;
        let file = folder.path().join("cloudprober.cfg");
        std::fs::write(&file, config(work, port)?).context("write cloudprober's configuration")?;
        let file = format!("--config_file={}", file.display());
        let mut prober = start_child(folder.path(), "cloudprober", program, &[&file, "--cloud_metadata=none"])?;
        let up = eventually("cloudprober", LIMIT, || async {
            scrape::get(port, "/health").await.map_err(|error| format!("{error:#}"))
        });
        if let Err(error) = up.await {
            prober.check_running()?;
            return Err(error.into());
        }
        Ok(Self { _folder: folder, port, prober })
    }

    pub(super) fn pid(&self) -> u32 {
        self.prober.pid()
    }

    pub(super) async fn counts(&self) -> anyhow::Result<Counts> {
        let (_, page) = scrape::get(self.port, "/metrics").await?;
        let (all, ok) = (sum(&page, "total"), sum(&page, "success"));
        Ok(Counts { ok, failed: all.saturating_sub(ok) })
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.prober.check_running()?;
        Ok(self.prober.stop().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_targets_and_no_other_is() {
        let page = "#TYPE total counter\ntotal{ptype=\"tcp\",dst=\"a\"} 10 1700000000000\ntotal{dst=\"b\"} 11 1700000000000\n\
                    total_x{dst=\"a\"} 5 1\nsuccess{dst=\"a\"} 9 1\n";
        assert_eq!((sum(page, "total"), sum(page, "success"), sum(page, "none")), (21, 9, 0));
    }
}
