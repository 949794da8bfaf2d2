//! Which tables are moved, and how.

/// Tables that are copied whole while messages are held; `result` and `dead_letter` are copied before, and what came since.
/// What was written to them is listed in `config_change`, which so comes last: a copy is no change.
/// Otherwise in the order in which results are stored: somebody who has not heard of the move may be at it in the other place.
pub(super) const SMALL: [&str; 11] = [
    "check_state",
    "poller_seen",
    "site",
    "poller",
    "check_definition",
    "sealed_secret",
    "assignment",
    "dispatch_state",
    "run_order",
    "member_event",
    "config_change",
];
/// What is compared whole before the rows are said to be elsewhere; of results only what has come since their history was.
pub(super) const COMPARED: [&str; 12] = [
    "site",
    "poller",
    "poller_seen",
    "check_state",
    "dead_letter",
    "check_definition",
    "sealed_secret",
    "assignment",
    "dispatch_state",
    "run_order",
    "member_event",
    "config_change",
];
