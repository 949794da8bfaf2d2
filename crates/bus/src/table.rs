//! The one table of subjects: who publishes, who receives, and how. Permissions, streams and `docs/subjects.md` follow.
//!
//! To speak something new, add a payload type and one row here. Patterns use placeholders: `<T>` is the tenant's
//! account key, and `<site>`, `<poller>`, `<user>`, `<verb>` and `<kind>` are one token each.

use crate::stream::StreamName;

/// Who may hold a connection, and in which account. Each role has its own scoped signing key (design section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A site's leaf link, in the tenant's account.
    Leaf,
    /// A poller that connects without a leaf, in the tenant's account.
    Poller,
    /// A tenant's own person who may change things.
    Admin,
    /// A tenant's own person who may look.
    Viewer,
    /// A person of the platform, in OPS.
    PlatformAdmin,
    /// Core's pulling connection in CORE: holds ack rights, answers nobody.
    CoreStream,
    /// Core's answering connection in CORE: publishes `_R_.>` and nothing else.
    CoreRpc,
    /// Core's display-only connection in INTAKE.
    CoreLive,
    /// poller-dispatch's waking connection in CORE: also asks the registry.
    DispatchPush,
    /// poller-dispatch's answering connection in CORE.
    DispatchRpc,
    /// The registry's answering connection in CORE.
    RegistryRpc,
    /// The registry's keeping connection in CORE: reads and writes the buckets of leases.
    RegistryKeep,
    /// The provisioning tool's connection in CORE: makes streams and consumers.
    Provisioner,
    /// The backup tool's connection in CORE: takes snapshots of the hub's streams and restores them.
    Backup,
    /// The provisioning tool's connection in SYS: pushes claims and checks that they are in force.
    SystemOperator,
    /// A replica of the gatekeeper, in AUTH: answers servers, reads what it knows, says what it decided.
    Gatekeeper,
    /// The provisioning tool's connection in AUTH: tells the gatekeeper what it knows.
    GateWriter,
    /// The gatekeeper's connection in SYS: which servers are ours.
    GateWatch,
    /// Everybody before they are admitted, in SENT: may do nothing.
    Sentinel,
}

impl Role {
    pub const ALL: [Self; 19] = [
        Self::Leaf,
        Self::Poller,
        Self::Admin,
        Self::Viewer,
        Self::PlatformAdmin,
        Self::CoreStream,
        Self::CoreRpc,
        Self::CoreLive,
        Self::DispatchPush,
        Self::DispatchRpc,
        Self::RegistryRpc,
        Self::RegistryKeep,
        Self::Provisioner,
        Self::Backup,
        Self::SystemOperator,
        Self::Gatekeeper,
        Self::GateWriter,
        Self::GateWatch,
        Self::Sentinel,
    ];
    pub const TENANT: [Self; 4] = [Self::Leaf, Self::Poller, Self::Admin, Self::Viewer];
    pub const CORE: [Self; 8] = [
        Self::CoreStream,
        Self::CoreRpc,
        Self::DispatchPush,
        Self::DispatchRpc,
        Self::RegistryRpc,
        Self::RegistryKeep,
        Self::Provisioner,
        Self::Backup,
    ];
    pub const SYSTEM: [Self; 2] = [Self::SystemOperator, Self::GateWatch];
    pub const AUTH: [Self; 2] = [Self::Gatekeeper, Self::GateWriter];
    /// What services of the platform may be behind the gatekeeper.
    pub const SERVICES: [Self; 9] = [
        Self::CoreStream,
        Self::CoreRpc,
        Self::CoreLive,
        Self::DispatchPush,
        Self::DispatchRpc,
        Self::RegistryRpc,
        Self::RegistryKeep,
        Self::Provisioner,
        Self::Backup,
    ];

    /// The role's name in scoped signing keys, file names and docs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Poller => "poller",
            Self::Admin => "admin",
            Self::Viewer => "viewer",
            Self::PlatformAdmin => "platform-admin",
            Self::CoreStream => "core-stream",
            Self::CoreRpc => "core-rpc",
            Self::CoreLive => "core-live",
            Self::DispatchPush => "dispatch-push",
            Self::DispatchRpc => "dispatch-rpc",
            Self::RegistryRpc => "registry-rpc",
            Self::RegistryKeep => "registry-keep",
            Self::Provisioner => "provisioner",
            Self::Backup => "backup",
            Self::SystemOperator => "system-operator",
            Self::Gatekeeper => "gatekeeper",
            Self::GateWriter => "gate-writer",
            Self::GateWatch => "gate-watch",
            Self::Sentinel => "sentinel",
        }
    }
}

/// The first token of a tenant's subjects: what accounts export and import as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Up,
    Down,
    Live,
}

impl Head {
    /// Everything under this head, as the tenant's account speaks it.
    #[must_use]
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Up => "up.>",
            Self::Down => "down.>",
            Self::Live => "live.>",
        }
    }

    /// Everything under this head of one account, or of all with `*`, as CORE and INTAKE see it.
    #[must_use]
    pub fn core_pattern(self, account: &str) -> String {
        format!("t.{account}.{}", self.pattern())
    }
}

/// Where the one service that asks others within CORE hears their answers: no import has made the reply subject there.
pub const ASKER_INBOX: &str = "_INBOX_dispatch-push";

/// How a subject travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into a stream; the PubAck travels back; at least once.
    Durable(StreamName),
    /// Request and reply.
    Request,
    /// At most once, display only.
    Live,
    /// At most once, triggers a fetch and carries no authority.
    WakeUp,
    /// Into the site's own stream on its leaf; never leaves the site.
    Edge(StreamName),
    /// Request and reply between services, within CORE.
    Service,
    /// At most once, between services, within CORE.
    Event,
}

/// One row: a subject, its two ends and its way.
#[derive(Debug, Clone, Copy)]
pub struct SubjectRow {
    /// As spoken in the tenant's account, or on the leaf for [`Way::Edge`].
    pub pattern: &'static str,
    pub from: &'static [Role],
    pub to: &'static [Role],
    /// Whether a site's leaf carries it, and so needs the right to.
    pub via_leaf: bool,
    pub way: Way,
    /// The payload type in [`crate::payload`].
    pub payload: &'static str,
    pub about: &'static str,
}

impl SubjectRow {
    /// The pattern as CORE and INTAKE see it; the server writes the prefix.
    #[must_use]
    pub fn core_pattern(&self) -> Option<String> {
        match self.way {
            Way::Durable(_) | Way::Request | Way::Live | Way::WakeUp | Way::Service | Way::Event => {
                Some(format!("t.<T>.{}", self.pattern))
            }
            Way::Edge(_) => None,
        }
    }

    /// Whether a tenant's account speaks it, or hears it.
    #[must_use]
    pub fn is_a_tenants(&self) -> bool {
        match self.way {
            Way::Durable(_) | Way::Request | Way::Live | Way::WakeUp | Way::Edge(_) => true,
            Way::Service | Way::Event => false,
        }
    }
}

/// Everything that is spoken.
pub const SUBJECTS: &[SubjectRow] = &[
    SubjectRow {
        pattern: "results.<poller>",
        from: &[],
        to: &[],
        via_leaf: false,
        way: Way::Edge(StreamName::ResultsEdge),
        payload: "ResultBatch",
        about: "signed batch from a poller to its leaf",
    },
    SubjectRow {
        pattern: "backfill.<poller>",
        from: &[],
        to: &[],
        via_leaf: false,
        way: Way::Edge(StreamName::BackfillEdge),
        payload: "ResultBatch",
        about: "the same, set aside by the forwarder when it has waited for more than a minute",
    },
    SubjectRow {
        pattern: "up.<site>.fwd.results",
        from: &[],
        to: &[Role::CoreStream],
        via_leaf: true,
        way: Way::Durable(StreamName::Results),
        payload: "ResultBatch",
        about: "signed batch from a site's forwarder to core",
    },
    SubjectRow {
        pattern: "up.<site>.fwd.backfill",
        from: &[],
        to: &[Role::CoreStream],
        via_leaf: true,
        way: Way::Durable(StreamName::Backfill),
        payload: "ResultBatch",
        about: "the same for batches that waited more than a minute at the leaf",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.core.<verb>",
        from: &[Role::Admin, Role::Viewer, Role::PlatformAdmin],
        to: &[Role::CoreRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "Query",
        about: "a person's query; the answer is a Reply",
    },
    SubjectRow {
        pattern: "up.<site>.<name>.rpc.registry.register",
        from: &[Role::Poller],
        to: &[Role::RegistryRpc],
        via_leaf: true,
        way: Way::Request,
        payload: "Register",
        about: "a member of a site comes; the answer is a LeaseGrant",
    },
    SubjectRow {
        pattern: "up.<site>.<name>.rpc.registry.renew",
        from: &[Role::Poller],
        to: &[Role::RegistryRpc],
        via_leaf: true,
        way: Way::Request,
        payload: "Renew",
        about: "it is still there, in this state; the answer is a LeaseGrant",
    },
    SubjectRow {
        pattern: "up.<site>.<name>.rpc.registry.deregister",
        from: &[Role::Poller],
        to: &[Role::RegistryRpc],
        via_leaf: true,
        way: Way::Request,
        payload: "Deregister",
        about: "it ends, and says why",
    },
    SubjectRow {
        pattern: "up.<site>.<poller>.rpc.dispatch.fetch_assignment",
        from: &[Role::Poller],
        to: &[Role::DispatchRpc],
        via_leaf: true,
        way: Way::Request,
        payload: "FetchAssignment",
        about: "a poller asks what changed of its checks; the answer is an AssignmentPage",
    },
    SubjectRow {
        pattern: "up.<site>.<poller>.rpc.dispatch.fetch_runs",
        from: &[Role::Poller],
        to: &[Role::DispatchRpc],
        via_leaf: true,
        way: Way::Request,
        payload: "FetchRuns",
        about: "a poller asks what it is to run once, now; the answer is RunOrders",
    },
    SubjectRow {
        pattern: "up.<site>.<poller>.rpc.dispatch.report_run",
        from: &[Role::Poller],
        to: &[Role::DispatchRpc],
        via_leaf: true,
        way: Way::Request,
        payload: "ReportRun",
        about: "how such a run ended",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.registry.list_members",
        from: &[Role::Admin, Role::Viewer, Role::PlatformAdmin],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "MemberQuery",
        about: "who is there, in which state; the answer is MemberRows",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.registry.select_members",
        from: &[Role::Admin, Role::Viewer, Role::PlatformAdmin],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "MemberQuery",
        about: "some of those that a query finds",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.registry.watch_members",
        from: &[Role::Admin, Role::Viewer, Role::PlatformAdmin],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "MemberQuery",
        about: "waits for a change after a revision",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.registry.list_member_events",
        from: &[Role::Admin, Role::Viewer, Role::PlatformAdmin],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "MemberQuery",
        about: "what became of members; the answer is MemberEventRows",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.registry.hold_member",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "MemberHold",
        about: "a poller gets no more checks until it is released",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.registry.release_member",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "MemberHold",
        about: "a poller gets checks again",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.dispatch.change_checks",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::DispatchRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "ChangeChecks",
        about: "adds, edits, removes or pauses checks; the answer is ChangedChecks",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.dispatch.run_check",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::DispatchRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "RunCheck",
        about: "runs a check now, at several vantages; the answer is RunRows",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.dispatch.list_sealing_keys",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::DispatchRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "SecretQuery",
        about: "for whom a secret is to be sealed",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.dispatch.set_secret",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::DispatchRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "SetSecret",
        about: "keeps a secret, sealed for each poller",
    },
    SubjectRow {
        pattern: "up._user.<user>.rpc.dispatch.list_secrets",
        from: &[Role::Admin, Role::PlatformAdmin],
        to: &[Role::DispatchRpc],
        via_leaf: false,
        way: Way::Request,
        payload: "SecretQuery",
        about: "which secrets there are, and for whom they are sealed",
    },
    SubjectRow {
        pattern: "live.<site>.<poller>.<kind>",
        from: &[Role::Poller],
        to: &[Role::CoreLive],
        via_leaf: true,
        way: Way::Live,
        payload: "LiveResults",
        about: "latest results for display; never changes state",
    },
    SubjectRow {
        pattern: "down.<site>.<poller>.<verb>",
        from: &[Role::DispatchPush],
        to: &[Role::Poller],
        via_leaf: true,
        way: Way::WakeUp,
        payload: "none",
        about: "wakes one poller, which then fetches",
    },
    SubjectRow {
        pattern: "svc.registry.list_members",
        from: &[Role::DispatchPush],
        to: &[Role::RegistryRpc],
        via_leaf: false,
        way: Way::Service,
        payload: "MemberPageQuery",
        about: "a service asks who is there; the answer is a MemberPage",
    },
    SubjectRow {
        pattern: "ev.registry.changed",
        from: &[Role::RegistryKeep],
        to: &[Role::DispatchPush],
        via_leaf: false,
        way: Way::Event,
        payload: "none",
        about: "members of this tenant changed: whoever goes by them asks",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens_overlap(a: &str, b: &str) -> bool {
        // No site is called as people are: names have no underscore.
        let is_open = |token: &str, other: &str| token.starts_with('<') && !other.starts_with('_');
        let (a, b): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
        a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| x == y || is_open(x, y) || is_open(y, x))
    }

    #[test]
    fn no_two_patterns_overlap() {
        for (index, row) in SUBJECTS.iter().enumerate() {
            for other in &SUBJECTS[index + 1..] {
                assert!(!tokens_overlap(row.pattern, other.pattern), "{} and {}", row.pattern, other.pattern);
            }
        }
    }

    #[test]
    fn a_leaf_never_answers_its_own_upstream_subject() {
        // If the edge stream covered an upstream subject, the leaf itself would send the PubAck (facts: imports, C).
        let is_edge = |row: &&SubjectRow| matches!(row.way, Way::Edge(_));
        for edge in SUBJECTS.iter().filter(is_edge) {
            for row in SUBJECTS.iter().filter(|row| !is_edge(row)) {
                assert!(!tokens_overlap(edge.pattern, row.pattern), "{}", row.pattern);
            }
        }
    }
}
