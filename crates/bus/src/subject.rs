//! Subjects as types: built only from typed names, and every subject that is built parses back to the same value.
//!
//! A tenant speaks [`TenantSubject`]; the server puts `t.<account key>.` before it on the way into CORE or INTAKE,
//! where it is a [`CoreSubject`]. That prefix is the only identity anyone may believe (design section 2).

use std::fmt;
use std::str::FromStr;

use crate::name::FORWARDER;
use crate::{AccountKey, MemberName, PollerName, SiteName, UserName};

/// The site token under which people speak. No site can be called so: names have no underscore.
const PEOPLE: &str = "_user";

/// A subject that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subject {0:?} is not in the subject table")]
pub struct SubjectError(pub String);

macro_rules! token_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $token:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            #[must_use]
            pub fn token(self) -> &'static str {
                match self { $(Self::$variant => $token),+ }
            }

            pub(crate) fn from_token(token: &str) -> Option<Self> {
                match token { $($token => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.token())
            }
        }
    };
}

token_enum!(
    /// Which durable way a batch takes: live results never wait behind an outage.
    Lane { Results = "results", Backfill = "backfill" }
);
token_enum!(
    /// What a display-only message shows.
    LiveKind { Results = "results" }
);
token_enum!(
    /// The queries that core answers.
    CoreVerb {
        ListTenants = "list_tenants",
        ListPollers = "list_pollers",
        ListResults = "list_results",
        ListStates = "list_states",
        ListLive = "list_live",
        ListHistory = "list_history",
        ListUptime = "list_uptime",
        ListPollerHistory = "list_poller_history",
        ListChecks = "list_checks",
        ListAssignments = "list_assignments",
        ListGaps = "list_gaps",
        ShowStatus = "show_status",
    }
);
token_enum!(
    /// What a member of a site asks the registry for, signed with its poller's key.
    LeaseVerb { Register = "register", Renew = "renew", Deregister = "deregister" }
);
token_enum!(
    /// What people ask the registry.
    RegistryVerb {
        ListMembers = "list_members",
        SelectMembers = "select_members",
        WatchMembers = "watch_members",
        ListMemberEvents = "list_member_events",
        HoldMember = "hold_member",
        ReleaseMember = "release_member",
    }
);
token_enum!(
    /// What a poller asks poller-dispatch for, signed with its key.
    AssignmentVerb { FetchAssignment = "fetch_assignment", FetchRuns = "fetch_runs", ReportRun = "report_run" }
);
token_enum!(
    /// What people ask poller-dispatch for.
    DispatchVerb {
        ChangeChecks = "change_checks",
        RunCheck = "run_check",
        ListSealingKeys = "list_sealing_keys",
        SetSecret = "set_secret",
        ListSecrets = "list_secrets",
    }
);
token_enum!(
    /// What services ask the registry within CORE.
    ServiceVerb { ListMembers = "list_members" }
);
token_enum!(
    /// What the registry says of itself within CORE.
    RegistryEvent { Changed = "changed" }
);
token_enum!(
    /// What a poller is woken for. A wake-up carries no authority: the poller fetches by request.
    WakeUp { Assign = "assign", Run = "run" }
);

/// A subject as it is spoken inside a tenant's account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TenantSubject {
    /// `up.<site>.fwd.<lane>`: a signed batch from a site's forwarder to core.
    Forwarded { site: SiteName, lane: Lane },
    /// `up._user.<user>.rpc.core.<verb>`: a person's query.
    Query { user: UserName, verb: CoreVerb },
    /// `live.<site>.<poller>.<kind>`: display only, at most once.
    Live { site: SiteName, poller: PollerName, kind: LiveKind },
    /// `down.<site>.<poller>.<verb>`: a wake-up for one poller.
    Down { site: SiteName, poller: PollerName, verb: WakeUp },
    /// `up.<site>.<name>.rpc.registry.<verb>`: a member of a site asks for its lease.
    Lease { site: SiteName, name: MemberName, verb: LeaseVerb },
    /// `up.<site>.<poller>.rpc.dispatch.<verb>`: a poller asks for what it is to do.
    Assignment { site: SiteName, poller: PollerName, verb: AssignmentVerb },
    /// `up._user.<user>.rpc.registry.<verb>`: a person asks about members, or holds one.
    Registry { user: UserName, verb: RegistryVerb },
    /// `up._user.<user>.rpc.dispatch.<verb>`: a person changes checks or has one run.
    Dispatch { user: UserName, verb: DispatchVerb },
    /// `svc.registry.<verb>`: a service asks the registry. Only within CORE: no account imports it.
    Service { verb: ServiceVerb },
    /// `ev.registry.<event>`: the registry's word that a tenant's members changed. Only within CORE.
    Event { event: RegistryEvent },
}

impl fmt::Display for TenantSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarded { site, lane } => write!(f, "up.{site}.{FORWARDER}.{lane}"),
            Self::Query { user, verb } => write!(f, "up.{PEOPLE}.{user}.rpc.core.{verb}"),
            Self::Live { site, poller, kind } => write!(f, "live.{site}.{poller}.{kind}"),
            Self::Down { site, poller, verb } => write!(f, "down.{site}.{poller}.{verb}"),
            Self::Lease { site, name, verb } => write!(f, "up.{site}.{name}.rpc.registry.{verb}"),
            Self::Assignment { site, poller, verb } => write!(f, "up.{site}.{poller}.rpc.dispatch.{verb}"),
            Self::Registry { user, verb } => write!(f, "up.{PEOPLE}.{user}.rpc.registry.{verb}"),
            Self::Dispatch { user, verb } => write!(f, "up.{PEOPLE}.{user}.rpc.dispatch.{verb}"),
            Self::Service { verb } => write!(f, "svc.registry.{verb}"),
            Self::Event { event } => write!(f, "ev.registry.{event}"),
        }
    }
}

fn parsed_tenant_subject(text: &str) -> Option<TenantSubject> {
    let tokens: Vec<&str> = text.split('.').collect();
    match tokens.as_slice() {
        ["up", site, FORWARDER, lane] => {
            Some(TenantSubject::Forwarded { site: site.parse().ok()?, lane: Lane::from_token(lane)? })
        }
        ["up", PEOPLE, user, "rpc", "core", verb] => {
            Some(TenantSubject::Query { user: user.parse().ok()?, verb: CoreVerb::from_token(verb)? })
        }
        ["up", PEOPLE, user, "rpc", "registry", verb] => {
            Some(TenantSubject::Registry { user: user.parse().ok()?, verb: RegistryVerb::from_token(verb)? })
        }
        ["up", PEOPLE, user, "rpc", "dispatch", verb] => {
            Some(TenantSubject::Dispatch { user: user.parse().ok()?, verb: DispatchVerb::from_token(verb)? })
        }
        ["up", site, name, "rpc", "registry", verb] => Some(TenantSubject::Lease {
            site: site.parse().ok()?,
            name: name.parse().ok()?,
            verb: LeaseVerb::from_token(verb)?,
        }),
        ["up", site, poller, "rpc", "dispatch", verb] => Some(TenantSubject::Assignment {
            site: site.parse().ok()?,
            poller: poller.parse().ok()?,
            verb: AssignmentVerb::from_token(verb)?,
        }),
        ["svc", "registry", verb] => Some(TenantSubject::Service { verb: ServiceVerb::from_token(verb)? }),
        ["ev", "registry", event] => Some(TenantSubject::Event { event: RegistryEvent::from_token(event)? }),
        ["live", site, poller, kind] => Some(TenantSubject::Live {
            site: site.parse().ok()?,
            poller: poller.parse().ok()?,
            kind: LiveKind::from_token(kind)?,
        }),
        ["down", site, poller, verb] => Some(TenantSubject::Down {
            site: site.parse().ok()?,
            poller: poller.parse().ok()?,
            verb: WakeUp::from_token(verb)?,
        }),
        _ => None,
    }
}

fn subject_error(text: &str) -> SubjectError {
    SubjectError(text.chars().take(200).collect())
}

impl FromStr for TenantSubject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        parsed_tenant_subject(text).ok_or_else(|| subject_error(text))
    }
}

/// A subject in CORE or INTAKE: `t.<account key>.` and what the tenant said after it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CoreSubject {
    pub account: AccountKey,
    pub subject: TenantSubject,
}

impl fmt::Display for CoreSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t.{}.{}", self.account, self.subject)
    }
}

impl CoreSubject {
    /// The account key that the server wrote, even when the rest of the subject is not in the table.
    ///
    /// # Errors
    /// When the subject does not begin with `t.` and a valid account key.
    pub fn account_of(text: &str) -> Result<AccountKey, SubjectError> {
        let token = text.strip_prefix("t.").and_then(|rest| rest.split('.').next());
        token.and_then(|key| key.parse().ok()).ok_or_else(|| subject_error(text))
    }
}

impl FromStr for CoreSubject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let account = Self::account_of(text)?;
        let rest = text.splitn(3, '.').nth(2).ok_or_else(|| subject_error(text))?;
        let subject = parsed_tenant_subject(rest).ok_or_else(|| subject_error(text))?;
        Ok(Self { account, subject })
    }
}

/// `<lane>.<poller>`: a batch on its site's own leaf, before it is forwarded. The poller writes `results`; what waits
/// too long there is set aside by the forwarder under `backfill`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EdgeSubject {
    pub lane: Lane,
    pub poller: PollerName,
}

impl fmt::Display for EdgeSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.lane, self.poller)
    }
}

impl FromStr for EdgeSubject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let tokens = text.split_once('.').and_then(|(lane, poller)| Lane::from_token(lane).zip(poller.parse().ok()));
        tokens.map(|(lane, poller)| Self { lane, poller }).ok_or_else(|| subject_error(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?";

    fn any_subject() -> impl Strategy<Value = TenantSubject> {
        let names = (NAME, NAME).prop_filter("fwd is reserved", |(_, name)| name != FORWARDER);
        (0_usize..30, names).prop_map(|(choice, (site, name))| {
            let site: SiteName = site.parse().unwrap();
            let poller: PollerName = name.parse().unwrap();
            match choice {
                0 | 1 => TenantSubject::Forwarded { site, lane: Lane::ALL[choice] },
                2 => TenantSubject::Live { site, poller, kind: LiveKind::Results },
                3 | 4 => TenantSubject::Down { site, poller, verb: WakeUp::ALL[choice - 3] },
                5..8 => TenantSubject::Lease { site, name: poller.into(), verb: LeaseVerb::ALL[choice - 5] },
                8 => TenantSubject::Lease { site, name: MemberName::Leaf, verb: LeaseVerb::Renew },
                9..12 => TenantSubject::Assignment { site, poller, verb: AssignmentVerb::ALL[choice - 9] },
                12..15 => TenantSubject::Registry { user: name.parse().unwrap(), verb: RegistryVerb::ALL[choice - 12] },
                15 | 16 => {
                    TenantSubject::Dispatch { user: name.parse().unwrap(), verb: DispatchVerb::ALL[choice - 15] }
                }
                17 => TenantSubject::Service { verb: ServiceVerb::ListMembers },
                18 => TenantSubject::Event { event: RegistryEvent::Changed },
                other => TenantSubject::Query {
                    user: name.parse().unwrap(),
                    verb: CoreVerb::ALL[other % CoreVerb::ALL.len()],
                },
            }
        })
    }

    proptest! {
        #[test]
        fn every_subject_built_is_parsed_back(subject in any_subject()) {
            let account: AccountKey = nkeys::KeyPair::new_account().public_key().parse().unwrap();
            prop_assert_eq!(subject.to_string().parse::<TenantSubject>().unwrap(), subject.clone());
            let core = CoreSubject { account: account.clone(), subject };
            prop_assert_eq!(core.to_string().parse::<CoreSubject>().unwrap(), core.clone());
            prop_assert_eq!(CoreSubject::account_of(&core.to_string()).unwrap(), account);
        }

        #[test]
        fn every_edge_subject_is_parsed_back(
            name in NAME.prop_filter("fwd is reserved", |name| name != FORWARDER), is_late in any::<bool>()
        ) {
            let lane = if is_late { Lane::Backfill } else { Lane::Results };
            let subject = EdgeSubject { lane, poller: name.parse().unwrap() };
            prop_assert_eq!(subject.to_string().parse::<EdgeSubject>().unwrap(), subject);
        }

        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = text.parse::<CoreSubject>();
            let _ = text.parse::<TenantSubject>();
            let _ = text.parse::<EdgeSubject>();
        }
    }

    #[test]
    fn look_alikes_are_not_subjects() {
        let bad = [
            "",
            "t",
            "t.",
            "up.oslo.fwd",
            "up.oslo.fwd.results.x",
            "up.*.fwd.results",
            "up.oslo.p1.results",
            "up.oslo.fwd.audit",
            "up._user.alice.rpc.core.drop_tables",
            "live.oslo.fwd.results",
            "down.oslo.p1.>",
            "up._user.alice.rpc.registry.list",
            "up._user.alice.rpc.registry.renew",
            "up.oslo.p1.rpc.registry.list_members",
            "up.oslo.fwd.rpc.dispatch.fetch_assignment",
            "svc.registry.register",
            "UP.oslo.fwd.results",
            "up.oslo.fwd.results ",
        ];
        for text in bad {
            assert!(text.parse::<TenantSubject>().is_err(), "{text:?}");
        }
        assert!("t.A.up.oslo.fwd.results".parse::<CoreSubject>().is_err());
        for text in ["results.fwd", "results", "live.p1", "results.p1.x", "backfill."] {
            assert!(text.parse::<EdgeSubject>().is_err(), "{text:?}");
        }
    }
}
