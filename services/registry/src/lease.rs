//! Who gets a lease and who does not. Pure: it decides about one request and what is kept, and whoever writes does so only
//! if nothing has changed meanwhile, so that any number of replicas may decide at the same time.
//!
//! Of two processes with one identity the one that started later wins, whichever of them asks first. A process never loses
//! its lease to itself: an answer that was lost, or two replicas that heard the same, change nothing.

use bulkhead_bus::header::Sequence;
use bulkhead_bus::payload::{Deregister, Register, Renew};

use crate::document::{InfoDoc, LeaseDoc};

/// How far a clock may be off for an older start to be believed where nobody holds the lease: a second forwarder takes over
/// like that, and a registration that somebody has recorded long ago does not.
const RECENT_MS: u64 = 60_000;

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This is the lease from now on.
    Grant(LeaseDoc),
    /// The very request that was granted last: it was delivered twice.
    Repeated,
    /// A process that started later has it.
    Fenced { boot: u64 },
    /// It was said before.
    Replayed,
    /// There is nothing to renew or end: register.
    NoLease,
}

/// Whether `number` may follow what was last heard of the same start.
fn follows(number: u64, last: u64) -> Option<Verdict> {
    match number.cmp(&last) {
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Equal => Some(Verdict::Repeated),
        std::cmp::Ordering::Less => Some(Verdict::Replayed),
    }
}

/// `info` is asked for where there is no lease: it tells which start was the last.
#[must_use]
pub fn register(
    lease: Option<&LeaseDoc>,
    info: Option<&InfoDoc>,
    (asked, sequence): (&Register, Sequence),
    now_ms: i64,
) -> Verdict {
    let live = lease.filter(|lease| lease.is_live());
    let of_info = info.map(|info| (info.boot, info.number));
    let last = lease.map(|lease| (lease.boot, lease.number)).max(of_info);
    match (live, last) {
        (Some(live), _) if sequence.boot < live.boot => return Verdict::Fenced { boot: live.boot },
        (Some(live), _) if sequence.boot == live.boot => {
            if let Some(verdict) = follows(sequence.number, live.number) {
                return verdict;
            }
        }
        (Some(_), _) => {}
        (None, Some(last)) => {
            let is_older = sequence.boot < last.0;
            let is_recent = asked.sent_ms.abs_diff(now_ms) <= RECENT_MS;
            if is_older && !is_recent || sequence.boot == last.0 && sequence.number <= last.1 {
                return Verdict::Replayed;
            }
        }
        (None, None) => {}
    }
    let same = live.filter(|live| live.boot == sequence.boot);
    let since_ms = same.filter(|live| live.state == asked.state).map_or(now_ms, |live| live.since_ms);
    Verdict::Grant(LeaseDoc {
        boot: sequence.boot,
        number: sequence.number,
        class: asked.class,
        state: asked.state,
        reasons: vec![],
        applied_generation: same.map_or(0, |live| live.applied_generation),
        load: same.map_or_else(Default::default, |live| live.load),
        clock_ahead_ms: asked.sent_ms.saturating_sub(now_ms),
        renewed_ms: now_ms,
        since_ms,
        ended: None,
    })
}

/// The lease that a process of this start may go on with; otherwise what it is told.
fn own_lease(lease: Option<&LeaseDoc>, sequence: Sequence) -> Result<&LeaseDoc, Verdict> {
    let Some(lease) = lease else { return Err(Verdict::NoLease) };
    match sequence.boot.cmp(&lease.boot) {
        std::cmp::Ordering::Less if lease.is_live() => return Err(Verdict::Fenced { boot: lease.boot }),
        std::cmp::Ordering::Less | std::cmp::Ordering::Greater => return Err(Verdict::NoLease),
        std::cmp::Ordering::Equal => {}
    }
    match follows(sequence.number, lease.number) {
        Some(verdict) => Err(verdict),
        None if lease.is_live() => Ok(lease),
        None => Err(Verdict::NoLease),
    }
}

#[must_use]
pub fn renew(lease: Option<&LeaseDoc>, (asked, sequence): (&Renew, Sequence), now_ms: i64) -> Verdict {
    let lease = match own_lease(lease, sequence) {
        Ok(lease) => lease,
        Err(verdict) => return verdict,
    };
    Verdict::Grant(LeaseDoc {
        boot: lease.boot,
        number: sequence.number,
        class: lease.class,
        state: asked.state,
        reasons: asked.reasons.clone(),
        applied_generation: asked.applied_generation,
        load: asked.load,
        clock_ahead_ms: asked.sent_ms.saturating_sub(now_ms),
        renewed_ms: now_ms,
        since_ms: if lease.state == asked.state { lease.since_ms } else { now_ms },
        ended: None,
    })
}

#[must_use]
pub fn deregister(lease: Option<&LeaseDoc>, (asked, sequence): (&Deregister, Sequence), now_ms: i64) -> Verdict {
    match own_lease(lease, sequence) {
        Ok(lease) => Verdict::Grant(LeaseDoc {
            number: sequence.number,
            since_ms: now_ms,
            ended: Some(asked.reason.clone()),
            ..lease.clone()
        }),
        Err(verdict) => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::{LEASE_VERSION, Load, MemberInfo, ReportedState};

    const NOW_MS: i64 = 1_000_000_000;

    fn register_of(boot: u64, number: u64, sent_ms: i64) -> (Register, Sequence) {
        let asked = Register {
            version: LEASE_VERSION,
            boot,
            class: Default::default(),
            info: MemberInfo::default(),
            state: ReportedState::Ready,
            sent_ms,
        };
        (asked, Sequence { boot, number })
    }

    fn granted(boot: u64, number: u64) -> LeaseDoc {
        let (asked, sequence) = register_of(boot, number, NOW_MS);
        let Verdict::Grant(lease) = register(None, None, (&asked, sequence), NOW_MS) else { panic!("nobody has it") };
        lease
    }

    fn word(verdict: &Verdict) -> String {
        match verdict {
            Verdict::Grant(lease) => format!("grant {}.{}", lease.boot, lease.number),
            Verdict::Repeated => "repeated".to_owned(),
            Verdict::Fenced { boot } => format!("fenced by {boot}"),
            Verdict::Replayed => "replayed".to_owned(),
            Verdict::NoLease => "no lease".to_owned(),
        }
    }

    fn check_register(lease: Option<LeaseDoc>, info: Option<(u64, u64)>, asked: (u64, u64, i64), expected: &str) {
        let info = info.map(|(boot, number)| InfoDoc { boot, number, ..InfoDoc::default() });
        let (register_body, sequence) = register_of(asked.0, asked.1, NOW_MS + asked.2);
        let verdict = register(lease.as_ref(), info.as_ref(), (&register_body, sequence), NOW_MS);
        assert_eq!(word(&verdict), expected, "{lease:?} {info:?} {asked:?}");
    }

    #[test]
    fn the_later_start_wins_in_either_order_and_nobody_is_fenced_by_itself() {
        let of = |boot, number| Some(granted(boot, number));
        let ended = Some(LeaseDoc { ended: Some("stopped".to_owned()), ..granted(5, 7) });
        check_register(None, None, (5, 1, 0), "grant 5.1");
        check_register(of(5, 1), Some((5, 1)), (9, 1, 0), "grant 9.1");
        check_register(of(9, 1), Some((9, 1)), (5, 8, 0), "fenced by 9");
        check_register(of(5, 3), Some((5, 1)), (5, 4, 0), "grant 5.4");
        check_register(of(5, 3), Some((5, 1)), (5, 3, 0), "repeated");
        check_register(of(5, 3), Some((5, 1)), (5, 2, 0), "replayed");
        // A process that ended, and one that was recorded.
        check_register(ended.clone(), Some((5, 1)), (5, 7, 0), "replayed");
        check_register(ended.clone(), Some((5, 1)), (5, 8, 0), "grant 5.8");
        check_register(ended, Some((5, 1)), (6, 1, -3_600_000), "grant 6.1");
        // Nobody holds it: a second forwarder takes over, a recording does not.
        check_register(None, Some((9, 4)), (5, 8, 500), "grant 5.8");
        check_register(None, Some((9, 4)), (5, 8, -3_600_000), "replayed");
        check_register(None, Some((9, 4)), (9, 4, 0), "replayed");
        check_register(None, Some((9, 4)), (9, 5, -3_600_000), "grant 9.5");
    }

    fn check_renew(lease: Option<LeaseDoc>, boot: u64, number: u64, expected: &str) {
        let renew_body = Renew {
            version: LEASE_VERSION,
            boot,
            revision: 0,
            state: ReportedState::Ready,
            reasons: vec![],
            applied_generation: 3,
            load: Load::default(),
            sent_ms: NOW_MS,
        };
        let deregister_body = Deregister { version: LEASE_VERSION, boot, revision: 0, reason: "upgrade".to_owned() };
        let sequence = Sequence { boot, number };
        let renewed = renew(lease.as_ref(), (&renew_body, sequence), NOW_MS + 5);
        let ended = deregister(lease.as_ref(), (&deregister_body, sequence), NOW_MS + 5);
        assert_eq!((word(&renewed), word(&ended)), (expected.to_owned(), expected.to_owned()), "{lease:?}");
    }

    #[test]
    fn only_who_has_a_lease_renews_or_ends_it() {
        let lease = Some(granted(5, 7));
        check_renew(lease.clone(), 5, 8, "grant 5.8");
        check_renew(lease.clone(), 5, 7, "repeated");
        check_renew(lease.clone(), 5, 6, "replayed");
        check_renew(lease.clone(), 4, 99, "fenced by 5");
        check_renew(lease.clone(), 6, 1, "no lease");
        check_renew(None, 5, 8, "no lease");
        check_renew(Some(LeaseDoc { ended: Some("stopped".to_owned()), ..granted(5, 7) }), 5, 8, "no lease");
    }

    #[test]
    fn a_state_has_a_beginning_that_renewals_keep() {
        let lease = granted(5, 7);
        let renewed = |state, now_ms| {
            let asked = Renew {
                version: LEASE_VERSION,
                boot: 5,
                revision: 0,
                state,
                reasons: vec![],
                applied_generation: 0,
                load: Load::default(),
                sent_ms: now_ms - 1_500,
            };
            let verdict = renew(Some(&lease), (&asked, Sequence { boot: 5, number: 8 }), now_ms);
            let Verdict::Grant(lease) = verdict else { panic!("{verdict:?}") };
            (lease.since_ms, lease.renewed_ms, lease.clock_ahead_ms)
        };
        assert_eq!(renewed(ReportedState::Ready, NOW_MS + 9), (NOW_MS, NOW_MS + 9, -1_500));
        assert_eq!(renewed(ReportedState::Draining, NOW_MS + 9), (NOW_MS + 9, NOW_MS + 9, -1_500));
    }
}
