//! Why provisioning did not do what it was asked to.

use bulkhead_bus::TenantSlug;
use bulkhead_claims::SignError;
use bulkhead_runtime::{BucketError, LimitReached, PublishError, StoreError};
use bulkhead_store::ProvisioningError;

use super::intake::IntakeError;
use super::journal::JournalError;
use super::record::RecordError;
use super::settings::SettingsError;
use crate::backup::ArchiveError;
use crate::bundle::{BundleError, BundleFilesError};
use crate::certificates::CertificateError;
use crate::enrolment::EnrolmentError;
use crate::files::FileError;
use crate::gate::GateError;
use crate::operator::{OperatorError, some};
use crate::plan::{PlanError, PlanRef};
use crate::provisioning_lock::LockError;
use crate::resolver::{Deletion, DeletionReport, DrainError, NotAsked, ProbeOutcome, ProbeResult, PushError};
use crate::up::PlatformError;

/// Names what was asked for, the rule, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum TenancyError {
    #[error("platform")]
    Settings(#[source] SettingsError),
    #[error("change this platform")]
    Lock(#[source] LockError),
    #[error("operator store")]
    Operator(#[source] OperatorError),
    #[error("certificates")]
    Certificate(#[source] CertificateError),
    #[error("plan")]
    Plan(#[source] PlanError),
    #[error("tenant")]
    Record(#[source] RecordError),
    #[error("write down what is done")]
    Journal(#[source] JournalError),
    #[error("live streams")]
    Intake(#[source] IntakeError),
    #[error("files")]
    File(#[source] FileError),
    #[error("platform")]
    Platform(#[source] PlatformError),
    #[error("put {account} in force")]
    Push { account: String, source: PushError },
    #[error("what the gatekeepers are told")]
    Gate(#[source] GateError),
    #[error("what the gatekeepers would be told")]
    GateRecord(#[source] bulkhead_identity::GateError),
    #[error("read what the gatekeepers were told")]
    Bucket(#[source] BucketError),
    #[error("the hub has no bucket for the gatekeepers")]
    NoBucket(#[source] LimitReached),
    #[error("the hub does not keep what the gatekeepers are told: say it again when its servers are there")]
    NotTold(#[source] StoreError),
    #[error("what gatekeepers say cannot be listened to")]
    NotHeard(#[source] PublishError),
    #[error(
        "nobody is in {account} who is let in no more, where servers are; the gatekeepers know it, and tell those that come \
         back. The hub does not keep it, because too few of its servers are there: `bulkhead push` once they are"
    )]
    NotKept { account: String, source: StoreError },
    #[error(
        "the gatekeepers let somebody of {account} in no more, who is still connected: see whether a gatekeeper runs \
         (`bulkhead doctor`), and say it again"
    )]
    StillIn { account: String, source: LimitReached },
    #[error("database rows")]
    Rows(#[source] ProvisioningError),
    #[error("backup of a tenant")]
    Archive(#[source] ArchiveError),
    #[error("read the URL of the database")]
    DatabaseUrl(#[source] FileError),
    #[error("{0}")]
    Invalid(String),
    #[error("tenant {0} is there already: `bulkhead tenant show {0}` shows it; --if-absent makes this no error")]
    AlreadyThere(TenantSlug),
    #[error(
        "tenant {slug} was begun with plan {begun}, and is not done: say it again without --plan to complete it, or undo it \
         with `bulkhead tenant add {slug} --undo`"
    )]
    BegunOtherwise { slug: TenantSlug, begun: PlanRef },
    #[error(
        "tenant {0} was offboarded and its data are still there: bring it back with `bulkhead tenant restore {0}`, or \
         destroy them with `bulkhead tenant offboard {0} --purge` and add it anew"
    )]
    Offboarded(TenantSlug),
    #[error("tenant {slug} is {stage}: {way_out}")]
    Stage { slug: TenantSlug, stage: &'static str, way_out: String },
    #[error("tenant {slug} is closed, and somebody of it is still connected: say it again")]
    StillConnected { slug: TenantSlug, source: LimitReached },
    #[error("tenant {slug} is in force, and a user of it is not admitted: {}", refusals(.outcome))]
    NotProved { slug: TenantSlug, outcome: ProbeOutcome },
    #[error("delete account")]
    Deletion(#[source] Deletion),
    #[error(
        "the account of tenant {slug} is not gone from every server: {}; a server that comes back brings the account back, so \
         say it again when all of them are there", leftovers(.report))]
    NotGone { slug: TenantSlug, report: DeletionReport },
    #[error("role {role} keeps both keys for now: finish again, or close whoever uses the old one with --force")]
    NotDrained { role: &'static str, source: DrainError },
    #[error(
        "operator key {key} is not known to {}: restart every server with the token of `bulkhead operator export` first \
         (it is not read again while a server runs); --offline asks nobody",
        .servers.join(", ")
    )]
    UnknownKey { key: String, servers: Vec<String> },
    #[error(
        "servers still hold {} accounts that operator key {key} has signed ({}): `bulkhead push` brings them the new \
         tokens; --offline asks nobody",
        .accounts.len(), some(.accounts)
    )]
    KeyHeld { key: String, accounts: Vec<String> },
    #[error("what {} may hold cannot be asked, because it is away: say it again when all servers are there", .0.join(", "))]
    ServersAway(Vec<String>),
    #[error("servers")]
    NotAsked(#[source] NotAsked),
    #[error("bundle")]
    Bundle(#[source] Box<BundleError>),
    #[error("write the bundle")]
    BundleFiles(#[source] BundleFilesError),
    #[error("sign")]
    Sign(#[source] SignError),
    #[error("enrolment")]
    Enrolment(#[source] EnrolmentError),
    #[error("tenant {slug} was not added, and what had been done is undone")]
    Undone { slug: TenantSlug, source: Box<TenancyError> },
    #[error(
        "tenant {slug} is half added: say `bulkhead tenant add {slug}` again to complete it, or `bulkhead tenant add {slug} \
         --undo`"
    )]
    HalfAdded { slug: TenantSlug, source: Box<TenancyError> },
}

fn refusals(outcome: &ProbeOutcome) -> String {
    let refusal = |(url, result): &(String, ProbeResult)| match result {
        ProbeResult::Admitted(_) => None,
        ProbeResult::Astray(found) => Some(format!("{url} puts it into account {}", found.account)),
        ProbeResult::Unseen => Some(format!("{url} says nothing of it")),
        ProbeResult::Refused(why) => Some(format!("{url} says: {why}")),
    };
    let mut told: Vec<String> = outcome.by_url.iter().filter_map(refusal).collect();
    told.extend(outcome.unproved.iter().map(|server| format!("{server} was not reached")));
    told.join(", ")
}

fn leftovers(report: &DeletionReport) -> String {
    let refused = report.refused.iter().map(|(server, why)| match why {
        Some(why) => format!("{server} has it still ({why})"),
        None => format!("{server} has it still"),
    });
    let unasked = report.unasked.iter().map(|server| format!("{server} could not be asked"));
    refused.chain(unasked).collect::<Vec<_>>().join(", ")
}

impl TenancyError {
    /// Whether what was asked for cannot be, and nothing was begun.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        let is_unknown = matches!(self, Self::Record(RecordError::Unknown(_)));
        let is_refused = matches!(
            self,
            Self::Settings(_)
                | Self::Operator(OperatorError::NoAccount(_) | OperatorError::NoRole(..))
                | Self::BundleFiles(BundleFilesError::NotABundle(_))
                | Self::Plan(_)
                | Self::Invalid(_)
                | Self::AlreadyThere(_)
                | Self::BegunOtherwise { .. }
                | Self::Offboarded(_)
                | Self::Stage { .. }
        );
        let is_bad_bundle = matches!(self, Self::Bundle(error) if error.is_invalid());
        let is_bad_backup = matches!(self, Self::Archive(error) if error.is_input())
            || matches!(self, Self::Rows(error) if error.is_rows_fault());
        is_unknown || is_refused || is_bad_bundle || is_bad_backup
    }

    /// Whether another tool changed an account, which nobody here may overwrite.
    #[must_use]
    pub fn is_foreign_edit(&self) -> bool {
        let (Self::Operator(error) | Self::Platform(PlatformError::Operator(error))) = self else { return false };
        matches!(error, OperatorError::ForeignEdit { .. })
    }

    /// Whether a server does not show what it was told: it may come about by itself, or when said again.
    #[must_use]
    pub fn is_not_converged(&self) -> bool {
        match self {
            Self::Push { source, .. } => source.is_not_converged(),
            Self::HalfAdded { source, .. } | Self::Undone { source, .. } => source.is_not_converged(),
            Self::Platform(PlatformError::Push(source)) => source.is_not_converged(),
            Self::StillConnected { .. }
            | Self::StillIn { .. }
            | Self::NotTold(_)
            | Self::NotHeard(_)
            | Self::NotKept { .. }
            | Self::NoBucket(_)
            | Self::NotProved { .. }
            | Self::NotGone { .. }
            | Self::NotDrained { .. }
            | Self::UnknownKey { .. }
            | Self::KeyHeld { .. }
            | Self::ServersAway(_) => true,
            Self::Settings(_)
            | Self::Gate(_)
            | Self::GateRecord(_)
            | Self::Bucket(_)
            | Self::Deletion(_)
            | Self::NotAsked(_)
            | Self::Bundle(_)
            | Self::BundleFiles(_)
            | Self::Sign(_)
            | Self::Enrolment(_)
            | Self::Lock(_)
            | Self::Operator(_)
            | Self::Certificate(_)
            | Self::Plan(_)
            | Self::Record(_)
            | Self::Journal(_)
            | Self::Intake(_)
            | Self::File(_)
            | Self::Platform(_)
            | Self::Rows(_)
            | Self::Archive(_)
            | Self::DatabaseUrl(_)
            | Self::Invalid(_)
            | Self::AlreadyThere(_)
            | Self::BegunOtherwise { .. }
            | Self::Offboarded(_)
            | Self::Stage { .. } => false,
        }
    }
}
