//! What processes have used, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time by part of the deployment.
pub(super) type Used = BTreeMap<&'static str, Duration>;

fn fields(pid: u32) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may hold spaces; the parent's pid is the second field behind it.
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
}

/// User and system time of a process, of what has ended below it, and of its living children.
fn used_by(pid: u32) -> Duration {
    let ticks = |fields: &[u64]| fields.get(11..15).map_or(0, |times| times.iter().sum::<u64>());
    let own = fields(pid).map_or(0, |fields| ticks(&fields));
    let is_child = |candidate: &u32| fields(*candidate).is_some_and(|fields| fields.get(1) == Some(&u64::from(pid)));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children: u64 = pids.filter(is_child).filter_map(fields).map(|fields| ticks(&fields)).sum();
    Duration::from_secs_f64((own + children) as f64 / TICKS_PER_SECOND)
}

pub(super) fn used(parts: &[(&'static str, u32)]) -> Used {
    let mut used = Used::new();
    for (part, pid) in parts {
        *used.entry(part).or_default() += used_by(*pid);
    }
    used
}

pub(super) fn difference(before: &Used, after: &Used) -> Used {
    after
        .iter()
        .map(|(part, time)| (*part, time.saturating_sub(before.get(part).copied().unwrap_or_default())))
        .collect()
}
