//! `t.<T>.up.<site>.<name>.rpc.registry.register|renew|deregister`: members of sites, each believed by its poller's key.
//!
//! Whoever cannot show such a key learns nothing but that. The database is not asked on this way, as long as it says what
//! changes; while it is away, what was last read of the keys is gone by.

use std::time::{Duration, Instant};

use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{
    Deregister, ErrorCode, LABEL_BYTES_MOST, LABELS_MOST, LEASE_VERSION, LeaseGrant, MemberInfo, Register, Renew,
    ReplyError,
};
use bulkhead_bus::{
    Audience, BatchKey, Claim, CoreSubject, LeaseVerb, MemberKey, MemberName, SiteName, Tenant, TenantSubject,
};
use bulkhead_runtime::{Chain, Responder, now_ms, refused};
use bulkhead_store::{BatchKeys, Registered};
use serde::de::DeserializeOwned;
use tracing::{debug, info, warn};

use super::{Answering, not_kept};
use crate::document::{InfoDoc, LeaseDoc};
use crate::keep::Kept;
use crate::lease::{self, Verdict};
use crate::metrics::{Granted, RefusedFor};

/// How long the database may keep a renewal waiting.
const PATIENCE: Duration = Duration::from_millis(300);
/// Bytes of a release, and of what a member says when it ends.
const TEXT_BYTES_MOST: usize = 200;
const CAPABILITIES_MOST: usize = 64;

/// Why a request is refused: what is counted, and what its sender is told.
struct Refused(RefusedFor, ReplyError);

fn malformed(message: impl ToString) -> Refused {
    Refused(RefusedFor::Malformed, refused(ErrorCode::Invalid, message))
}

/// Whoever it is learns only that it is not believed, and not why.
fn not_believed(reason: RefusedFor) -> Refused {
    Refused(reason, refused(ErrorCode::NotSigned, "the request is not signed by a key that is known and good"))
}

/// How a request that may not be refused ended without a decision.
enum Unanswered {
    Refused(Refused),
    Undecided(ReplyError),
}

impl From<Refused> for Unanswered {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// A request of a member whom its key has proved.
struct Proved<T> {
    key: MemberKey,
    asked: T,
    sequence: Sequence,
}

/// Whether `key` may speak for `name`: its own poller's, or for the leaf link that of any poller of the site.
fn believe(keys: &BatchKeys, site: &SiteName, name: &MemberName, key: &BatchKey) -> Result<(), RefusedFor> {
    let is_it = |registered: &Registered| match registered {
        Registered::Key(registered) => registered == key,
        Registered::Unreadable | Registered::Revoked => false,
    };
    match name {
        MemberName::Poller(poller) => match keys.get(&(site.clone(), poller.clone())) {
            Some(Registered::Revoked) => Err(RefusedFor::Revoked),
            Some(registered) if is_it(registered) => Ok(()),
            Some(Registered::Key(_) | Registered::Unreadable) | None => Err(RefusedFor::ForeignKey),
        },
        MemberName::Leaf => {
            let mut of_site = keys.iter().filter(|((own, _), _)| own == site);
            of_site.any(|(_, registered)| is_it(registered)).then_some(()).ok_or(RefusedFor::ForeignKey)
        }
    }
}

/// What is wrong with what a member says of itself.
fn check_info(info: &MemberInfo) -> Result<(), Refused> {
    let is_long =
        |text: &String| text.is_empty() || text.len() > LABEL_BYTES_MOST || text.chars().any(char::is_control);
    if info.labels.len() > LABELS_MOST {
        return Err(malformed(format!("{} labels: at most {LABELS_MOST} are allowed", info.labels.len())));
    }
    if let Some((name, _)) = info.labels.iter().find(|(name, value)| is_long(name) || is_long(value)) {
        let name: String = name.chars().take(LABEL_BYTES_MOST).collect();
        return Err(malformed(format!("label {name:?}: name and value are 1 to {LABEL_BYTES_MOST} bytes of text")));
    }
    if info.capabilities.len() > CAPABILITIES_MOST {
        return Err(malformed(format!("more than {CAPABILITIES_MOST} capabilities")));
    }
    let sealing_key = info.sealing_key.as_deref();
    if sealing_key.is_some_and(|key| !key.starts_with('X') || key.len() != 56) {
        return Err(malformed("sealing_key is no X25519 public key"));
    }
    check_text("release", &info.release)
}

fn check_text(what: &str, text: &str) -> Result<(), Refused> {
    if text.len() > TEXT_BYTES_MOST || text.chars().any(char::is_control) {
        return Err(malformed(format!("{what} is at most {TEXT_BYTES_MOST} bytes of text")));
    }
    Ok(())
}

fn grant(lease: &LeaseDoc, revision: u64, is_held: bool, now_ms: i64) -> LeaseGrant {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let lasting = |duration: Duration| if lease.is_live() { millis(duration) } else { 0 };
    let (ttl_ms, heartbeat_ms) = (lasting(lease.class.ttl()), lasting(lease.class.heartbeat()));
    LeaseGrant { revision, ttl_ms, heartbeat_ms, now_ms, is_held }
}

impl Answering {
    pub(super) async fn lease(&self, subject: CoreSubject, request: &Responder) -> Result<LeaseGrant, ReplyError> {
        let TenantSubject::Lease { verb, .. } = subject.subject else {
            return Err(refused(ErrorCode::Invalid, "this is no request for a lease"));
        };
        let began = Instant::now();
        let answered = match verb {
            LeaseVerb::Register => self.register(&subject, request).await,
            LeaseVerb::Renew => self.renew(&subject, request).await,
            LeaseVerb::Deregister => self.deregister(&subject, request).await,
        };
        self.metrics.request_seconds.observe(began.elapsed());
        match answered {
            Ok(grant) => Ok(grant),
            Err(Unanswered::Refused(Refused(reason, error))) => {
                self.metrics.requests_refused.of(reason).inc();
                debug!(reason = reason.as_str(), %subject, "request refused: {}", error.message);
                Err(error)
            }
            Err(Unanswered::Undecided(error)) => {
                self.metrics.requests_undecided.inc();
                Err(error)
            }
        }
    }

    async fn register(&self, subject: &CoreSubject, request: &Responder) -> Result<LeaseGrant, Unanswered> {
        let proved: Proved<Register> = self.prove(subject, request).await?;
        let (asked, sequence, now) = (&proved.asked, proved.sequence, now_ms());
        check_said(asked.version, asked.boot, sequence)?;
        check_info(&asked.info)?;
        let kept = self.keeper.decide(&proved.key, |lease, info| lease::register(lease, info, (asked, sequence), now));
        let kept = kept.await.map_err(|error| Unanswered::Undecided(not_kept(&error)))?;
        if let Kept::Granted(_, revision) | Kept::Repeated(_, revision) = kept {
            // Only who has the lease says what it is; a crash in between is mended by the next registration.
            let change = |info: Option<&InfoDoc>| registered(info, (asked, sequence), revision, now);
            let written = self.keeper.change_info(&proved.key, change);
            written.await.map_err(|error| Unanswered::Undecided(not_kept(&error)))?;
        }
        if let Kept::Granted(..) = kept {
            let (site, name, class) = (&proved.key.site, &proved.key.name, asked.class.as_str());
            info!(account = %proved.key.account, class, "{site}/{name} has a lease");
        }
        self.settle(&proved.key, kept, Granted::Register, now)
    }

    async fn renew(&self, subject: &CoreSubject, request: &Responder) -> Result<LeaseGrant, Unanswered> {
        let proved: Proved<Renew> = self.prove(subject, request).await?;
        let (asked, sequence, now) = (&proved.asked, proved.sequence, now_ms());
        check_said(asked.version, asked.boot, sequence)?;
        let kept = self.keeper.decide(&proved.key, |lease, _| lease::renew(lease, (asked, sequence), now));
        let kept = kept.await.map_err(|error| Unanswered::Undecided(not_kept(&error)))?;
        self.settle(&proved.key, kept, Granted::Renew, now)
    }

    async fn deregister(&self, subject: &CoreSubject, request: &Responder) -> Result<LeaseGrant, Unanswered> {
        let proved: Proved<Deregister> = self.prove(subject, request).await?;
        let (asked, sequence, now) = (&proved.asked, proved.sequence, now_ms());
        check_said(asked.version, asked.boot, sequence)?;
        check_text("reason", &asked.reason)?;
        let kept = self.keeper.decide(&proved.key, |lease, _| lease::deregister(lease, (asked, sequence), now));
        let kept = kept.await.map_err(|error| Unanswered::Undecided(not_kept(&error)))?;
        self.settle(&proved.key, kept, Granted::Deregister, now)
    }

    fn settle(&self, key: &MemberKey, kept: Kept, verb: Granted, now: i64) -> Result<LeaseGrant, Unanswered> {
        let is_held = self.view.look(|members, _, _| members.get(key).is_some_and(|member| member.held().is_some()));
        let verdict = match kept {
            Kept::Granted(lease, revision) => {
                self.metrics.requests_granted.of(verb).inc();
                return Ok(grant(&lease, revision, is_held, now));
            }
            Kept::Repeated(lease, revision) => {
                self.metrics.requests_repeated.inc();
                return Ok(grant(&lease, revision, is_held, now));
            }
            Kept::Refused(verdict) => verdict,
        };
        Err(Unanswered::Refused(match verdict {
            Verdict::Fenced { boot } => {
                warn!(account = %key.account, "{}/{} is fenced: another start of it has the lease", key.site, key.name);
                let message = format!("the start {boot} has this lease, which is later than yours: stop");
                Refused(RefusedFor::Fenced, refused(ErrorCode::Fenced, message))
            }
            Verdict::Replayed => not_believed(RefusedFor::Replayed),
            Verdict::NoLease | Verdict::Grant(_) | Verdict::Repeated => {
                Refused(RefusedFor::NoLease, refused(ErrorCode::NotFound, "there is no lease of this start: register"))
            }
        }))
    }

    /// Who asks, by the subject that the server wrote and by the key of that poller.
    async fn prove<T: DeserializeOwned + Claim + Clone>(
        &self,
        subject: &CoreSubject,
        request: &Responder,
    ) -> Result<Proved<T>, Unanswered> {
        let body: T = serde_json::from_slice(&request.body).map_err(malformed)?;
        let spoken = subject.subject.to_string();
        let snapshot = self.directory.snapshot();
        let guarded = snapshot.admit(subject.clone(), Audience::Tenants, body);
        let guarded = guarded.map_err(|refusal| {
            warn!(reason = refusal.code(), %subject, "request refused: {refusal}");
            Refused(RefusedFor::Guard, refused(ErrorCode::Refused, refusal))
        })?;
        let signed = header::verify_request(|name| request.headers.get(name), &spoken, &request.body);
        let signed = signed.map_err(|_| not_believed(RefusedFor::BadSignature))?;
        let attested = signed.ok_or_else(|| not_believed(RefusedFor::Unsigned))?;
        let (Some(tenant), TenantSubject::Lease { site, name, .. }) = (guarded.tenant(), guarded.subject()) else {
            return Err(malformed("this is no request for a lease").into());
        };
        self.check_key(tenant, (site, name), &attested.key).await?;
        let key = MemberKey { account: subject.account.clone(), site: site.clone(), name: name.clone() };
        Ok(Proved { key, asked: guarded.body().clone(), sequence: attested.sequence })
    }

    async fn check_key(
        &self,
        tenant: &Tenant,
        (site, name): (&SiteName, &MemberName),
        key: &BatchKey,
    ) -> Result<(), Unanswered> {
        let away = |error: bulkhead_store::StoreError| {
            warn!(error = %Chain(&error), "a request waits for its key");
            Unanswered::Undecided(refused(ErrorCode::Unavailable, "the keys cannot be read now: try again"))
        };
        let keys = self.directory.keys_or_last(tenant, PATIENCE).await.map_err(away)?;
        let Err(reason) = believe(&keys, site, name, key) else { return Ok(()) };
        // A poller that was registered a moment ago is no stranger.
        let recent =
            bulkhead_store::within("read batch keys", PATIENCE, self.directory.recent_batch_keys(tenant)).await;
        match recent {
            Ok(keys) => Ok(believe(&keys, site, name, key).map_err(not_believed)?),
            Err(_) => Err(not_believed(reason).into()),
        }
    }
}

/// A body that speaks for another start than its signature is none.
fn check_said(version: u16, boot: u64, sequence: Sequence) -> Result<(), Refused> {
    if version != LEASE_VERSION {
        return Err(malformed(format!("version {version}: this registry reads {LEASE_VERSION}")));
    }
    if boot != sequence.boot {
        return Err(malformed(format!("the body is of start {boot}, and its sequence of {}", sequence.boot)));
    }
    Ok(())
}

/// What is static, after this registration, whose lease has this revision; `None` when a later one was written meanwhile.
fn registered(
    info: Option<&InfoDoc>,
    (asked, sequence): (&Register, Sequence),
    revision: u64,
    now_ms: i64,
) -> Option<InfoDoc> {
    let is_later = |info: &InfoDoc| info.revision >= revision && info.boot >= sequence.boot;
    if info.is_some_and(is_later) {
        return None;
    }
    Some(InfoDoc {
        boot: sequence.boot,
        number: sequence.number,
        revision,
        class: asked.class,
        info: Some(asked.info.clone()),
        first_ms: info.map(|info| info.first_ms).filter(|first_ms| *first_ms > 0).unwrap_or(now_ms),
        registered_ms: now_ms,
        lost: None,
        held: info.and_then(|info| info.held.clone()),
    })
}
