//! What goes wrong in one run, and when: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use bulkhead_testkit::{Link, Losses};
use fastrand::Rng;

use super::world::Tenant;

/// How long a paused process stays so: mostly less than the acknowledgement wait of 30 s, and one time in
/// [`LONG_ONE_IN`] more, so that what it held is handed out again while it still holds it.
const PAUSE: Duration = Duration::from_secs(20);
const LONG_PAUSE: Duration = Duration::from_secs(45);
const LONG_ONE_IN: u32 = 4;
/// Between the beginnings of two faults of a run, in milliseconds.
const GAP_MS: std::ops::Range<u64> = 0..4_000;

/// What a fault is done to. A run never does two things to one part: the second would hide the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Hub(usize),
    Leaf(Tenant),
    Core,
    /// A replica of it, as of the next.
    Registry(usize),
    Dispatch(usize),
    Poller(Tenant),
    Database,
    Link(Tenant),
    Ledger(Tenant),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(number) => write!(f, "hub-{}", number + 1),
            Self::Leaf(tenant) => write!(f, "leaf of {tenant}"),
            Self::Core => f.write_str("core"),
            Self::Registry(number) => write!(f, "registry-{}", number + 1),
            Self::Dispatch(number) => write!(f, "poller-dispatch-{}", number + 1),
            Self::Poller(tenant) => write!(f, "poller of {tenant}"),
            Self::Database => f.write_str("database"),
            Self::Link(tenant) => write!(f, "link of {tenant}"),
            Self::Ledger(tenant) => write!(f, "what {tenant} sends"),
        }
    }
}

/// What no tenant's honest poller would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    NotJson,
    UnknownVersion,
    ForeignTenant,
    BadSignature,
    FutureRow,
    /// What a poller puts on its leaf says that it is a bundle, and is cut off.
    CutBundle,
    /// The same of what a site's forwarder sends upstream.
    CutBundleUpstream,
}

impl Malformed {
    pub const ALL: [Self; 7] = [
        Self::NotJson,
        Self::UnknownVersion,
        Self::ForeignTenant,
        Self::BadSignature,
        Self::FutureRow,
        Self::CutBundle,
        Self::CutBundleUpstream,
    ];

    /// Why it is dead-lettered.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotJson | Self::CutBundle | Self::CutBundleUpstream => "not_decodable",
            Self::UnknownVersion => "unknown_version",
            Self::ForeignTenant => "tenant_mismatch",
            Self::BadSignature => "bad_signature",
            Self::FutureRow => "slot_in_future",
        }
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9; started again at the end.
    Kill(Part),
    /// SIGSTOP; SIGCONT at the end.
    Pause(Part),
    /// What the network between leaf and hub does meanwhile.
    Network(Part, Link),
    /// The disk of the part is filled to the last byte; freed, and the server started again, at the end.
    FullDisk(Part),
    /// The poller's clock is off by so much; right again at the end.
    ClockStep(Tenant, i64),
    Malformed(Tenant, Malformed),
    /// One batch, sent ten times.
    Repeat(Tenant),
    /// The leaf's disk is replaced by an empty one once everything in it has gone upstream.
    NewLeafDisk(Tenant),
    /// The disk of one of several hub servers is replaced by an empty one while the others are up.
    NewHubDisk(usize),
}

impl Fault {
    #[must_use]
    pub fn part(self) -> Part {
        match self {
            Self::Kill(part) | Self::Pause(part) | Self::Network(part, _) | Self::FullDisk(part) => part,
            Self::ClockStep(tenant, _) => Part::Poller(tenant),
            Self::Malformed(tenant, _) | Self::Repeat(tenant) => Part::Ledger(tenant),
            Self::NewLeafDisk(tenant) => Part::Leaf(tenant),
            Self::NewHubDisk(number) => Part::Hub(number),
        }
    }

    /// Whether it is only fair when everything else is well.
    #[must_use]
    pub fn wants_quiet(self) -> bool {
        matches!(self, Self::NewLeafDisk(_) | Self::NewHubDisk(_))
    }

    /// Whether the pollers of `tenant` may have missed slots, or given them wrong times.
    #[must_use]
    pub fn disturbs_slots(self, tenant: Tenant) -> bool {
        match self {
            Self::Kill(part) | Self::Pause(part) => part == Part::Poller(tenant),
            // The poller's own batch may be on the disk that goes.
            Self::ClockStep(other, _) | Self::NewLeafDisk(other) => other == tenant,
            Self::Network(..) | Self::FullDisk(_) | Self::Malformed(..) | Self::Repeat(_) | Self::NewHubDisk(_) => {
                false
            }
        }
    }

    fn lasts(self, rng: &mut Rng) -> Duration {
        match self {
            Self::Kill(_) => Duration::from_millis(rng.u64(0..4_000)),
            Self::Pause(_) if rng.u32(0..LONG_ONE_IN) == 0 => LONG_PAUSE,
            Self::Pause(_) => PAUSE,
            Self::Network(..) => Duration::from_millis(rng.u64(4_000..15_000)),
            Self::FullDisk(_) => Duration::from_millis(rng.u64(4_000..10_000)),
            Self::ClockStep(..) => Duration::from_millis(rng.u64(3_000..12_000)),
            Self::Malformed(..) | Self::Repeat(_) | Self::NewLeafDisk(_) | Self::NewHubDisk(_) => Duration::ZERO,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(part) => write!(f, "kill -9 {part}"),
            Self::Pause(part) => write!(f, "SIGSTOP {part}"),
            Self::Network(part, Link::Slow(delay)) => write!(f, "{part} slow by {} ms", delay.as_millis()),
            Self::Network(part, Link::Lossy(_)) => write!(f, "{part} lossy"),
            Self::Network(part, Link::Cut | Link::Up) => write!(f, "{part} cut"),
            Self::FullDisk(part) => write!(f, "full disk of {part}"),
            Self::ClockStep(tenant, ms) => write!(f, "clock of the poller of {tenant} off by {ms} ms"),
            Self::Malformed(tenant, kind) => write!(f, "malformed batch of {tenant} ({kind:?}: {})", kind.reason()),
            Self::Repeat(tenant) => write!(f, "ten times the same batch of {tenant}"),
            Self::NewLeafDisk(tenant) => write!(f, "new disk of the leaf of {tenant}"),
            Self::NewHubDisk(number) => write!(f, "new disk of hub-{}", number + 1),
        }
    }
}

/// How bad the weather is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storm {
    /// So many faults, drawn at random.
    Faults(usize),
    /// Every kind of fault once, in random order.
    Everything,
    Calm,
}

/// What there is to break.
#[derive(Debug, Clone, Copy)]
pub struct Surface {
    pub hub_servers: usize,
    /// Replicas of the registry, and of poller-dispatch.
    pub sharers: usize,
    /// Whether disks are small file systems of their own, which needs root.
    pub has_disks: bool,
    /// Whether the poller's clock can be set, which needs a C compiler.
    pub has_clock: bool,
}

/// One fault and its time, counted from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub fault: Fault,
    pub begins: Duration,
    pub lasts: Duration,
}

impl Planned {
    #[must_use]
    pub fn ends(&self) -> Duration {
        self.begins + self.lasts
    }
}

/// Everything that goes wrong in one run: first what may overlap, in order, then what wants quiet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub overlapping: Vec<Planned>,
    pub quiet: Vec<Fault>,
}

/// Which tenant writes the ledger that a fault is about; for tests.
#[must_use]
pub fn ledger_of(fault: Fault) -> Option<Tenant> {
    match fault.part() {
        Part::Ledger(tenant) => Some(tenant),
        Part::Hub(_)
        | Part::Leaf(_)
        | Part::Core
        | Part::Registry(_)
        | Part::Dispatch(_)
        | Part::Poller(_)
        | Part::Database
        | Part::Link(_) => None,
    }
}

fn all_faults(rng: &mut Rng, surface: Surface, malformed: &[Malformed]) -> Vec<Fault> {
    let tenant = |rng: &mut Rng| Tenant::ALL[rng.usize(0..Tenant::ALL.len())];
    let hub = |rng: &mut Rng| Part::Hub(rng.usize(0..surface.hub_servers));
    let mut all = Vec::new();
    for make in [Fault::Kill, Fault::Pause] {
        let parts = [hub(rng), Part::Leaf(tenant(rng)), Part::Core, Part::Poller(tenant(rng)), Part::Database];
        let sharers = [Part::Registry, Part::Dispatch].map(|part| part(rng.usize(0..surface.sharers)));
        all.extend(parts.into_iter().chain(sharers).map(make));
    }
    let losses = Losses {
        seed: rng.u64(..),
        stalls_per_mille: 100,
        stall: Duration::from_millis(400),
        resets_per_mille: rng.u16(0..8),
    };
    for link in [Link::Cut, Link::Slow(Duration::from_millis(600)), Link::Lossy(losses)] {
        all.push(Fault::Network(Part::Link(tenant(rng)), link));
    }
    if surface.has_disks {
        all.extend([Part::Leaf(tenant(rng)), hub(rng), Part::Database].map(Fault::FullDisk));
    }
    if surface.has_clock {
        let step = rng.i64(1_000..3_600_000) * if rng.bool() { 1 } else { -1 };
        all.push(Fault::ClockStep(tenant(rng), step));
    }
    all.extend(malformed.iter().map(|&kind| Fault::Malformed(tenant(rng), kind)));
    all.push(Fault::Repeat(tenant(rng)));
    all.push(Fault::NewLeafDisk(tenant(rng)));
    if surface.hub_servers > 1 {
        all.push(Fault::NewHubDisk(rng.usize(0..surface.hub_servers)));
    }
    all
}

impl Plan {
    #[must_use]
    pub fn draw(seed: u64, storm: Storm, surface: Surface) -> Self {
        let mut rng = Rng::with_seed(seed);
        let malformed = match storm {
            Storm::Everything => Malformed::ALL.to_vec(),
            // Otherwise half of what is drawn would be these.
            Storm::Faults(_) | Storm::Calm => vec![Malformed::ALL[rng.usize(0..Malformed::ALL.len())]],
        };
        let mut all = all_faults(&mut rng, surface, &malformed);
        rng.shuffle(&mut all);
        let mut plan = Self { seed, overlapping: vec![], quiet: vec![] };
        let (most, is_serial) = match storm {
            Storm::Faults(most) => (most, false),
            Storm::Everything => (all.len(), true),
            Storm::Calm => (0, false),
        };
        let mut begins = Duration::from_secs(1);
        let mut taken: Vec<Part> = Vec::new();
        // Several servers stand one failure at a time; two at once are an outage, which is another promise.
        let is_hub = |part: Part| matches!(part, Part::Hub(_));
        for fault in all {
            let part = fault.part();
            let is_taken = taken.iter().any(|&other| other == part || (is_hub(part) && is_hub(other)));
            if taken.len() >= most || (is_taken && !is_serial) {
                continue;
            }
            taken.push(part);
            if fault.wants_quiet() {
                plan.quiet.push(fault);
                continue;
            }
            let lasts = fault.lasts(&mut rng);
            plan.overlapping.push(Planned { fault, begins, lasts });
            let gap = Duration::from_millis(rng.u64(GAP_MS));
            begins += if is_serial { lasts + gap } else { gap };
        }
        plan
    }

    /// Leaves out every fault whose description does not contain `text`, and the time until the next one with it.
    pub fn keep_only(&mut self, text: &str) {
        let begins: Vec<Duration> = self.overlapping.iter().map(|planned| planned.begins).collect();
        let mut spared = Duration::ZERO;
        let mut kept = Vec::new();
        for (planned, next) in self.overlapping.iter().zip(begins.iter().skip(1).map(Some).chain([None])) {
            if planned.fault.to_string().contains(text) {
                kept.push(Planned { begins: planned.begins - spared, ..*planned });
            } else if let Some(next) = next {
                spared += *next - planned.begins;
            }
        }
        self.overlapping = kept;
        self.quiet.retain(|fault| fault.to_string().contains(text));
    }

    pub fn faults(&self) -> impl Iterator<Item = Fault> {
        self.overlapping.iter().map(|planned| planned.fault).chain(self.quiet.iter().copied())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}:", self.seed)?;
        for Planned { fault, begins, lasts } in &self.overlapping {
            write!(f, " [{:.1}s +{:.1}s {fault}]", begins.as_secs_f32(), lasts.as_secs_f32())?;
        }
        for fault in &self.quiet {
            write!(f, " [then {fault}]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SURFACE: Surface = Surface { hub_servers: 3, sharers: 2, has_disks: true, has_clock: true };

    #[test]
    fn a_plan_follows_from_its_seed() {
        assert_eq!(Plan::draw(7, Storm::Faults(4), SURFACE), Plan::draw(7, Storm::Faults(4), SURFACE));
        assert_ne!(Plan::draw(7, Storm::Faults(4), SURFACE), Plan::draw(8, Storm::Faults(4), SURFACE));
    }

    #[test]
    fn everything_is_everything_once_and_storms_spare_what_was_hit() {
        let everything = Plan::draw(1, Storm::Everything, SURFACE);
        assert_eq!(everything.faults().count(), 31);
        for seed in 0..200 {
            let plan = Plan::draw(seed, Storm::Faults(4), SURFACE);
            let parts: Vec<Part> = plan.faults().map(Fault::part).collect();
            assert!(!parts.is_empty() && parts.len() <= 4);
            for (index, part) in parts.iter().enumerate() {
                assert!(!parts[index + 1..].contains(part), "{plan}");
            }
        }
    }

    #[test]
    fn what_is_left_of_a_plan_begins_at_once_and_goes_on_without_holes() {
        for seed in 0..50 {
            let mut plan = Plan::draw(seed, Storm::Everything, SURFACE);
            plan.keep_only("SIGSTOP");
            assert_eq!((plan.overlapping.len(), plan.overlapping[0].begins), (7, Duration::from_secs(1)), "{plan}");
            for two in plan.overlapping.windows(2) {
                let gap = two[1].begins - two[0].ends();
                assert!(gap < Duration::from_millis(GAP_MS.end), "{plan}");
            }
        }
    }

    #[test]
    fn one_pause_in_four_outlasts_the_acknowledgement_wait() {
        let plans = (0..300).map(|seed| Plan::draw(seed, Storm::Everything, SURFACE).overlapping);
        let pauses = plans.flatten().filter(|planned| matches!(planned.fault, Fault::Pause(_)));
        let (long, short): (Vec<_>, Vec<_>) = pauses.partition(|planned| planned.lasts == LONG_PAUSE);
        assert!(short.iter().all(|planned| planned.lasts == PAUSE));
        let share = long.len() as f64 / (long.len() + short.len()) as f64;
        assert!((0.2..0.3).contains(&share), "{share}");
    }

    #[test]
    fn every_fault_is_drawn_sooner_or_later() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let plan = Plan::draw(seed, Storm::Faults(3), SURFACE);
            seen.extend(plan.faults().map(|fault| format!("{fault:?}").split('(').next().unwrap_or("").to_owned()));
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
    }

    #[test]
    fn every_part_is_hit_sooner_or_later() {
        let plans = (0..300).map(|seed| Plan::draw(seed, Storm::Faults(3), SURFACE));
        let killed_or_paused = |fault: &Fault| matches!(fault, Fault::Kill(_) | Fault::Pause(_));
        let hit: Vec<Fault> = plans.flat_map(|plan| plan.faults().collect::<Vec<_>>()).collect();
        let hit: std::collections::BTreeSet<String> =
            hit.iter().filter(|fault| killed_or_paused(fault)).map(Fault::to_string).collect();
        // Three hub servers, two leaves, two pollers, core, the database, two replicas each of registry and dispatch.
        assert_eq!(hit.len(), 2 * 13, "{hit:?}");
    }
}
