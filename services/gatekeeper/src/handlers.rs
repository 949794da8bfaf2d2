//! Servers' questions: each is answered, within the time that a server may wait, and its decision is durable first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::{CALLOUT, CALLOUT_QUEUE, SERVER_XKEY};
use bulkhead_bus::payload::{ADMITTED, Decision, DecisionConnection, DecisionServer};
use bulkhead_claims::{AuthorizationRequestBody, Claims};
use bulkhead_identity::{AuthorityName, VerifiedCertificate};
use bulkhead_runtime::{Bus, Chain, Heart, Readiness, Responder, Stop, now_ms};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::answer::{Answering, Session, user_token};
use crate::barred::Barred;
use crate::decide::{Admission, Kind, Question, Seen, decide};
use crate::knowledge::Known;
use crate::ledger::Ledger;
use crate::metrics::{Metrics, Outcome, add};
use crate::request::{Asked, clock_trouble, read_request};
use crate::servers::Servers;

/// A leaf waits 2 s whatever the server says (facts: auth-callout-measured, item 8).
const DECIDE_LIMIT: Duration = Duration::from_millis(450);
/// How long somebody is let in for while the bucket cannot be watched.
const STALE_SESSION_S: i64 = 600;
/// Questions under way; more are refused at once.
const AT_ONCE_MOST: usize = 512;

/// Everything that a decision takes.
pub struct Deciding {
    pub gatekeeper: String,
    pub known: Arc<std::sync::RwLock<Known>>,
    pub answering: Answering,
    pub servers: Servers,
    pub ledger: Arc<Ledger>,
    pub barred: Arc<Barred>,
    pub session: Session,
    pub metrics: Arc<Metrics>,
}

/// How a question ended: a user token, or the code that the server is told.
type Ended = Result<String, &'static str>;

fn kind_of(request: &AuthorizationRequestBody) -> Option<Kind> {
    let info = &request.client_info;
    match (info.kind.as_str(), info.protocol.as_str()) {
        ("Client", "nats") => Some(Kind::Client),
        ("Leafnode", _) => Some(Kind::Leaf),
        _ => None,
    }
}

impl Deciding {
    /// Answers until `stop`.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn run(self: Arc<Self>, bus: Bus, readiness: Readiness, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut questions = bus.answer(CALLOUT, CALLOUT_QUEUE).await?;
        bus.flush().await?;
        readiness.mark("questions");
        let places = Arc::new(Semaphore::new(AT_ONCE_MOST));
        loop {
            let question = tokio::select! {
                question = heart.while_waiting(questions.next()) => question,
                () = stop.cancelled() => return Ok(()),
            };
            let came = Instant::now();
            // Whoever has to wait for a place is too late anyway: it is told at once.
            let place = Arc::clone(&places).try_acquire_owned().ok();
            let deciding = Arc::clone(&self);
            tokio::spawn(async move {
                deciding.handle(question, came, place.is_some()).await;
                drop(place);
            });
        }
    }

    async fn handle(&self, question: Responder, came: Instant, has_place: bool) {
        let xkey = question.headers.get(SERVER_XKEY).map(str::to_owned);
        let now_s = now_ms() / 1_000;
        let asked = Asked { xkey: &self.answering.xkey, sentinel_account: &self.answering.sentinel_account };
        let request = match read_request(&question.body, xkey.as_deref(), asked) {
            Ok(request) => request,
            Err(error) => {
                // Whoever asked cannot be answered: there is no key to seal an answer for, or no user to answer about.
                add(&self.metrics.requests_unreadable, 1);
                warn!(error = %Chain(&error), "a question about a connection is not one of a server");
                return;
            }
        };
        let left = DECIDE_LIMIT.saturating_sub(came.elapsed());
        let ended = match has_place {
            true => timeout(left, self.decide(&request)).await.unwrap_or(Err("too_slow")),
            false => Err("too_slow"),
        };
        let code = ended.as_ref().err().copied().unwrap_or(ADMITTED);
        if let Some(outcome) = Outcome::of(code) {
            add(self.metrics.decisions.of(outcome), 1);
        }
        self.metrics.decision_seconds.observe(came.elapsed());
        let server_xkey = xkey.unwrap_or_default();
        match self.answering.answer(&request.nats, &server_xkey, ended, now_s) {
            Ok(answer) => {
                if let Err(error) = question.answer(answer.into()).await {
                    warn!(error = %Chain(&error), "a server was not answered");
                }
            }
            Err(error) => warn!(error = %Chain(&error), "a server was not answered"),
        }
    }

    /// Decides and makes the decision durable.
    async fn decide(&self, request: &Claims<AuthorizationRequestBody>) -> Ended {
        let mut decision = self.new_decision(&request.nats);
        let mut decided_by = None;
        let ended = if let Some(trouble) = clock_trouble(request, now_ms() / 1_000) {
            decision.detail = trouble;
            Err("clock")
        } else if self.servers.has(&request.iss).await {
            self.look(&request.nats, &mut decision, &mut decided_by)
        } else {
            decision.detail = format!("server {} is none of ours, or SYS cannot be asked", request.iss);
            Err("unknown_server")
        };
        let code = ended.as_ref().err().copied().unwrap_or(ADMITTED);
        code.clone_into(&mut decision.outcome);
        match &ended {
            Ok(_) => debug!(decision = ?decision, "admitted"),
            Err(code) => info!(
                code,
                detail = decision.detail,
                identity = decision.identity,
                expected = decision.expected,
                actual = decision.actual,
                host = decision.connection.host,
                "a connection is refused: {code}"
            ),
        }
        if let Err(error) = self.ledger.record(&decision).await {
            warn!(error = %Chain(error.as_ref()), "a decision is not durable: the connection is refused");
            return Err(if ended.is_ok() { "not_recorded" } else { code });
        }
        // A revocation that came meanwhile closes who is in, and this one is not in yet.
        match decided_by {
            Some((account, epoch)) if !self.is_still(&account, epoch) => {
                decision.id = Uuid::new_v4().to_string();
                "changed".clone_into(&mut decision.outcome);
                // Nobody is let in, whether this is durable or not.
                let _ = self.ledger.record(&decision).await;
                Err("changed")
            }
            Some(_) | None => ended,
        }
    }

    fn is_still(&self, account: &AccountKey, epoch: u64) -> bool {
        let known = self.known.read().expect("no holder panics");
        known.gate.member(account).is_some_and(|member| member.record.epoch == epoch)
    }

    fn new_decision(&self, request: &AuthorizationRequestBody) -> Decision {
        let (server, info) = (&request.server_id, &request.client_info);
        let short = |text: &str| text.chars().take(200).collect::<String>();
        Decision {
            id: Uuid::new_v4().to_string(),
            at_ms: now_ms(),
            gatekeeper: self.gatekeeper.clone(),
            user_key: request.user_nkey.clone(),
            server: DecisionServer { id: server.id.clone(), name: short(&server.name) },
            connection: DecisionConnection {
                id: info.id,
                host: short(&info.host),
                kind: short(&info.kind),
                name: short(&request.connect_opts.name),
            },
            ..Decision::default()
        }
    }

    /// `decided_by` is set to the record that lets it in.
    fn look(
        &self,
        request: &AuthorizationRequestBody,
        decision: &mut Decision,
        decided_by: &mut Option<(AccountKey, u64)>,
    ) -> Ended {
        let Some(kind) = kind_of(request) else {
            let info = &request.client_info;
            decision.detail = format!("it connects as {:?} of {:?}", info.kind, info.protocol);
            return Err("kind");
        };
        let no_chains = Vec::new();
        let chains = request.client_tls.as_ref().map_or(&no_chains, |tls| &tls.verified_chains);
        let name = request.connect_opts.name.as_str();
        let question = Question { kind, name, host: &request.client_info.host, chains };
        let now_s = now_ms() / 1_000;
        let known = self.known.read().expect("no holder panics");
        let (decided, seen) = decide(&known.gate, &known.trust, &question, now_s.unsigned_abs());
        write_seen(decision, &seen, &known);
        let is_barred = |certificate: &VerifiedCertificate| self.barred.has(&certificate.fingerprint, now_s);
        if decided.is_ok() && seen.certificate.as_ref().is_some_and(is_barred) {
            "its certificate was found where it does not belong".clone_into(&mut decision.detail);
            return Err("barred");
        }
        match decided {
            Ok(admission) => {
                let epoch = known.gate.member(&admission.account).map(|member| member.record.epoch);
                *decided_by = epoch.map(|epoch| (admission.account.clone(), epoch));
                self.admit(&admission, &seen, request, &known, decision)
            }
            Err(refusal) => {
                decision.detail = Chain(&refusal).to_string().chars().take(300).collect();
                Err(refusal.code())
            }
        }
    }

    fn admit(
        &self,
        admission: &Admission,
        seen: &Seen,
        request: &AuthorizationRequestBody,
        known: &Known,
        decision: &mut Decision,
    ) -> Ended {
        let signer = known.gate.member(&admission.account).and_then(|member| member.signer(admission.role));
        let Some(signer) = signer else {
            decision.detail = format!("the key of role {} is not here", admission.role.name());
            return Err("no_key");
        };
        let now_s = now_ms() / 1_000;
        let not_after = seen.certificate.as_ref().map_or(now_s, |certificate| certificate.not_after);
        // By what may be old somebody is let in for minutes.
        let most = if known.is_current { i64::MAX } else { now_s + STALE_SESSION_S };
        let until = self.session.until(not_after.min(most), now_s, fastrand::f64());
        decision.account = Some(admission.account.to_string());
        decision.role = Some(admission.role.name().to_owned());
        decision.until = Some(until);
        user_token(admission, signer, &request.user_nkey, (now_s, until)).map_err(|error| {
            decision.detail = Chain(&error).to_string();
            "no_key"
        })
    }
}

fn write_seen(decision: &mut Decision, seen: &Seen, known: &Known) {
    decision.expected.clone_from(&seen.expected);
    let Some(certificate) = &seen.certificate else { return };
    decision.fingerprint = Some(certificate.fingerprint.clone());
    decision.identity = Some(certificate.identity.uri(&known.trust.domain));
    decision.actual = Some(match certificate.identity.authority() {
        AuthorityName::Tenant(slug) => slug.to_string(),
        AuthorityName::Platform | AuthorityName::ClientRoot | AuthorityName::ServerRoot | AuthorityName::RouteRoot => {
            "platform".to_owned()
        }
    });
}
