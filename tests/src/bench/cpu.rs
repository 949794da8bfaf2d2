//! What processes have used and what the machine has left, as the kernel counts it.

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

/// Time of all cores together since the machine was started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    all_ticks: u64,
    idle_ticks: u64,
    /// Idle as well, but something waits for a disk.
    disk_ticks: u64,
}

/// What the machine did in some time: it says whether CPU or disks stand in the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    pub busy: Duration,
    /// Of all cores' time, so much had nothing to do: waiting for a disk included.
    pub idle_share: f64,
    pub disk_share: f64,
}

impl Machine {
    pub(super) fn now() -> Self {
        Self::read(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    fn read(stat: &str) -> Self {
        let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = ticks.map(|word| word.parse().unwrap_or(0)).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Self { all_ticks: ticks.iter().sum(), idle_ticks: at(3) + at(4), disk_ticks: at(4) }
    }

    pub(super) fn until(self, later: Self) -> Spent {
        let all = later.all_ticks.saturating_sub(self.all_ticks);
        let idle = later.idle_ticks.saturating_sub(self.idle_ticks);
        let share = |ticks: u64| ticks as f64 / all.max(1) as f64;
        Spent {
            busy: Duration::from_secs_f64(all.saturating_sub(idle) as f64 / TICKS_PER_SECOND),
            idle_share: share(idle),
            disk_share: share(later.disk_ticks.saturating_sub(self.disk_ticks)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idle_is_the_share_of_all_cores() {
        let before = Machine::read("cpu  100 0 50 1000 10 0 5 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n");
        let after = Machine::read("cpu  250 0 100 1100 110 0 5 0 99 0\n");
        let spent = before.until(after);
        assert_eq!((spent.busy, spent.idle_share, spent.disk_share), (Duration::from_secs(2), 0.5, 0.25));
    }
}
