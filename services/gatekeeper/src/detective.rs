//! The alarm behind the gatekeeper: looks at whoever is in, by the certificate that they showed, and closes what no decision
//! can have let in. It opens nothing, and what it does not know it leaves alone.
//!
//! Source: design section 3; facts, auth-callout-measured sections 7 and 8. It looks at each connection when the server says
//! that it came, and at all of them now and then, for those events that nobody heard.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::{BarredItem, DETECTIVE_QUEUE};
use bulkhead_bus::payload::{Decision, DecisionConnection, DecisionServer};
use bulkhead_bus::question::{CONNECTED, ServerQuestion, kick, server_connections};
use bulkhead_identity::{GateRecord, TrustedRoots, Withdrawal};
use bulkhead_runtime::{Bus, Chain, Heart, Stop, now_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::barred::Barred;
use crate::judge::{DirectAccounts, Row, judge, may_be_behind, owners, withdrawal};
use crate::knowledge::Known;
use crate::ledger::Ledger;
use crate::metrics::{Finding, Metrics, add};
use crate::servers::ServerKeys;

const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// What one replica may know later than another one.
const LAG_LIMIT: Duration = Duration::from_millis(500);
/// When somebody is put out: within a second it has to be over.
const QUICK_LIMIT: Duration = Duration::from_millis(200);
const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// However often it was blind: a sweep costs servers 0.1 ms for each connection.
const SWEEP_LEAST: Duration = Duration::from_secs(5);
/// How soon it notices that it sees again.
const SIGHT_EVERY: Duration = Duration::from_millis(200);
/// A server makes all rows for each page, and needs about 0.1 ms for one.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
const PAGE_ROWS: usize = 16_384;
const PAGES_MOST: usize = 128;
/// Longer than a connection may be in SENT while it is decided on: what a sweep saw there may be admitted by now.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(3);
/// What a server calls a leaf's connection.
const LEAF: &str = "Leafnode";
/// Events that are looked at side by side.
const AT_ONCE_MOST: usize = 32;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    server: Server,
    data: Page,
}

#[derive(Clone, Deserialize, Default)]
#[serde(default)]
struct Server {
    id: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Page {
    connections: Vec<Row>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Event {
    server: Server,
    client: Client,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Client {
    id: u64,
    acc: String,
    kind: String,
}

/// What is looked at, and by whom.
pub struct Detective {
    pub gatekeeper: String,
    pub system: Bus,
    pub known: Arc<RwLock<Known>>,
    pub direct: DirectAccounts,
    /// A PEM file: our own, with its intermediate.
    pub own_certificate: PathBuf,
    pub ledger: Arc<Ledger>,
    /// What is barred, and the connection to AUTH over which replicas hear of it.
    pub barred: Arc<Barred>,
    pub bus: Bus,
    /// Accounts in which everybody is to be looked at.
    pub reviews: mpsc::UnboundedSender<AccountKey>,
    pub metrics: Arc<Metrics>,
    /// How many answered last, so that not more are waited for.
    pub servers: AtomicUsize,
    /// Whether somebody who came could not be looked at, or not be closed: then everybody is looked at soon.
    pub has_missed: AtomicBool,
    /// Servers that have found a leaf by its number.
    pub finds_leaves: ServerKeys,
}

impl Detective {
    /// Looks at whoever comes, until `stop`. Replicas share the events.
    ///
    /// # Errors
    /// When the events cannot be listened for.
    pub async fn follow(self: Arc<Self>, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut events = self.system.answer(CONNECTED, DETECTIVE_QUEUE).await?;
        let places = Arc::new(Semaphore::new(AT_ONCE_MOST));
        loop {
            let (event, place) = tokio::select! {
                both = heart.while_waiting(async {
                    let place = Arc::clone(&places).acquire_owned().await;
                    (events.next().await, place)
                }) => both,
                () = stop.cancelled() => return Ok(()),
            };
            let Ok(event) = serde_json::from_slice::<Event>(&event.body) else { continue };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                this.look_at(&event.server, event.client.id, &event.client.kind, &event.client.acc).await;
                drop(place);
            });
        }
    }

    /// Looks at everybody now and then, and whenever it sees again after it could not: whoever came meanwhile was looked at by
    /// nobody. Until `stop`.
    ///
    /// # Errors
    /// Never: a sweep that fails is made again.
    pub async fn sweep(self: Arc<Self>, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(SIGHT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut losses = self.system.losses();
        let (mut was_blind, mut due, mut soonest) = (true, Instant::now(), Instant::now());
        loop {
            let swept = heart.while_waiting(async {
                ticks.tick().await;
                was_blind |= losses.has_changed().unwrap_or_default() || !self.sees();
                losses.mark_unchanged();
                was_blind |= self.has_missed.swap(false, Ordering::Relaxed);
                let now = Instant::now();
                let is_due = now >= due || (was_blind && now >= soonest);
                if !self.sees() || !is_due {
                    return;
                }
                (was_blind, due, soonest) = (false, now + SWEEP_EVERY, now + SWEEP_LEAST);
                self.look_at_all().await;
                add(&self.metrics.sweeps, 1);
            });
            tokio::select! {
                () = swept => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Whether it hears who comes, and may judge by what it knows.
    fn sees(&self) -> bool {
        self.system.is_connected() && self.known.read().expect("no holder panics").is_current
    }

    /// Looks at everybody in an account whose record admits less than before, at once, until `stop`. Every replica does: a
    /// connection that another one is just letting in by what it knew is seen by that one. That record is judged by whether
    /// the bucket is watched or not: it has just come, and signed.
    ///
    /// # Errors
    /// Never: whom a silent server hides is found by a sweep.
    pub async fn review(
        self: Arc<Self>,
        mut narrowed: mpsc::UnboundedReceiver<AccountKey>,
        heart: Heart,
        stop: Stop,
    ) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(AT_ONCE_MOST));
        let slow_places = Arc::new(Semaphore::new(AT_ONCE_MOST));
        loop {
            let (account, place) = tokio::select! {
                both = heart.while_waiting(async {
                    let account = narrowed.recv().await;
                    (account, Arc::clone(&places).acquire_owned().await)
                }) => both,
                () = stop.cancelled() => return Ok(()),
            };
            // What is known lives as long as we do.
            let Some(account) = account else { return Ok(()) };
            let (this, slow_places) = (Arc::clone(&self), Arc::clone(&slow_places));
            tokio::spawn(async move {
                // As many as were there before answer within milliseconds; one that is slow, or new, is not waited for at first.
                let before = match this.servers.load(Ordering::Relaxed) {
                    0 => usize::MAX,
                    before => before,
                };
                this.look_into(account.as_str(), before, QUICK_LIMIT).await;
                // Many who are put out at once do not wait for each other's slow servers.
                drop(place);
                let Ok(_place) = slow_places.acquire_owned().await else { return };
                let there = this.look_into(account.as_str(), usize::MAX, ANSWER_LIMIT).await;
                this.servers.store(there, Ordering::Relaxed);
            });
        }
    }

    /// Looks at everybody in an account, on the servers that answer within `limit`, and no longer than until so many have; says
    /// how many did.
    async fn look_into(&self, account: &str, enough: usize, limit: Duration) -> usize {
        let question = json!({ "auth": true, "acc": account, "limit": PAGE_ROWS });
        let subject = ServerQuestion::Connections.subject();
        let answers = self.system.request_all(subject, question.to_string().into(), enough, limit).await;
        let answers = answers.unwrap_or_default();
        for answer in &answers {
            let Ok(answer) = serde_json::from_slice::<Answer>(answer) else { continue };
            let is_all = answer.data.connections.len() < PAGE_ROWS;
            let rows = match is_all {
                true => Some(answer.data.connections),
                false => self.rows_of(&answer.server, json!({ "auth": true, "acc": account })).await,
            };
            for row in rows.unwrap_or_default() {
                if let Some(finding) = self.judge_by_what_is_known(&row) {
                    self.act(&answer.server, &row, finding).await;
                }
            }
        }
        answers.len()
    }

    /// Looks at one connection, and acts.
    async fn look_at(&self, server: &Server, cid: u64, kind: &str, account: &str) {
        let rows = self.rows_about(server, cid, kind, account).await;
        for row in rows.into_iter().filter(|row| row.cid == cid) {
            let Some(finding) = self.judge(&row) else { continue };
            if self.may_be_behind(&row, finding) {
                // Another replica may have let it in by a record that is still on its way here.
                let mut lag = tokio::time::interval(LAG_LIMIT);
                lag.tick().await;
                lag.tick().await;
                if let Some(finding) = self.judge(&row) {
                    self.act(server, &row, finding).await;
                }
            } else {
                self.act(server, &row, finding).await;
            }
        }
    }

    /// What a server says about a connection; with a leaf of an older server, all of its account. Those (2.15.0 and before) find
    /// leaves by their account only, and a whole account for each leaf of a storm is what a hub spends half of its time on.
    async fn rows_about(&self, server: &Server, cid: u64, kind: &str, account: &str) -> Vec<Row> {
        let by_number = json!({ "auth": true, "acc": account, "cid": cid });
        let rows = self.rows_of(server, by_number).await.unwrap_or_default();
        if kind != LEAF || self.finds_leaves.has(&server.id) {
            return rows;
        }
        if rows.is_empty() {
            return self.rows_of(server, json!({ "auth": true, "acc": account })).await.unwrap_or_default();
        }
        self.finds_leaves.add(&server.id);
        rows
    }

    fn may_be_behind(&self, row: &Row, finding: Finding) -> bool {
        may_be_behind(row, finding, &self.known.read().expect("no holder panics").gate)
    }

    async fn look_at_all(&self) {
        let question = json!({ "auth": true, "limit": 1 }).to_string();
        let subject = ServerQuestion::Connections.subject();
        let answers = self.system.request_all(subject, question.into(), usize::MAX, ANSWER_LIMIT).await;
        let mut found = Vec::new();
        for answer in answers.unwrap_or_default() {
            let Ok(answer) = serde_json::from_slice::<Answer>(&answer) else { continue };
            let Some(rows) = self.rows_of(&answer.server, json!({ "auth": true })).await else {
                add(&self.metrics.sweeps_cut, 1);
                continue;
            };
            let wrong = rows.into_iter().filter(|row| self.judge(row).is_some());
            found.extend(wrong.map(|row| (answer.server.clone(), row)));
        }
        if found.is_empty() {
            return;
        }
        let mut second_look = tokio::time::interval(SECOND_LOOK_AFTER);
        second_look.tick().await;
        second_look.tick().await;
        for (server, row) in found {
            self.look_at(&server, row.cid, &row.kind, &row.account).await;
        }
    }

    /// All rows of a question to one server, page by page; `None` when it does not say them.
    async fn rows_of(&self, server: &Server, question: Value) -> Option<Vec<Row>> {
        let mut rows = Vec::new();
        for page in 0..PAGES_MOST {
            let mut question = question.clone();
            question["limit"] = PAGE_ROWS.into();
            question["offset"] = (page * PAGE_ROWS).into();
            let subject = server_connections(&server.id);
            let asked = self.system.request(&subject, question.to_string().into(), PAGE_LIMIT).await;
            let answer = asked.map_err(|error| Chain(&error).to_string());
            let answer =
                answer.and_then(|body| serde_json::from_slice::<Answer>(&body).map_err(|error| error.to_string()));
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    warn!(error, server = server.name, "a server does not say who is connected");
                    self.has_missed.store(true, Ordering::Relaxed);
                    return None;
                }
            };
            let count = answer.data.connections.len();
            rows.extend(answer.data.connections);
            if count < PAGE_ROWS {
                break;
            }
        }
        Some(rows)
    }

    /// What is wrong with a connection by what is known now. By what may be old nobody is judged.
    fn judge(&self, row: &Row) -> Option<Finding> {
        let is_current = self.known.read().expect("no holder panics").is_current;
        is_current.then(|| self.judge_by_what_is_known(row)).flatten()
    }

    fn judge_by_what_is_known(&self, row: &Row) -> Option<Finding> {
        let known = self.known.read().expect("no holder panics");
        let finding = judge(row, &known.gate, known.trust.roots.keys(), &self.direct);
        let is_direct = row.account == self.direct.auth || row.account == self.direct.system;
        finding.or_else(|| (!is_direct && self.is_barred(row)).then_some(Finding::Barred))
    }

    fn is_barred(&self, row: &Row) -> bool {
        row.tls_peer_certs.first().is_some_and(|own| self.barred.has(&own.cert_sha256, now_ms() / 1_000))
    }

    /// Whoever came by a token into an account that nobody enters by tokens: its key is named to whoever can revoke it.
    async fn bar_user(&self, row: &Row) -> bool {
        let Ok(what) = format!("{}/{}", row.account, row.authorized_user).parse::<BarredItem>() else { return false };
        self.barred.bar(what, &self.gatekeeper, &self.bus).await;
        true
    }

    /// Whoever shows a tenant's certificate where it does not belong is let in nowhere by it, and does not stay where it does.
    async fn bar(&self, row: &Row) -> bool {
        let owners = owners(row, &self.known.read().expect("no holder panics").gate);
        let Some(own) = row.tls_peer_certs.first().filter(|_| !owners.is_empty()) else { return false };
        let Ok(what) = own.cert_sha256.parse::<BarredItem>() else { return false };
        if !self.barred.bar(what, &self.gatekeeper, &self.bus).await {
            return self.is_barred(row);
        }
        for account in owners {
            // At the end of the process nobody listens any more.
            let _ = self.reviews.send(account);
        }
        true
    }

    /// Whether the platform vouches for ourselves: a gatekeeper that was not given a new certificate after a rotation must not
    /// throw out all others like it.
    fn is_own_good(&self) -> bool {
        let known = self.known.read().expect("no holder panics");
        let platform = known.gate.platform_authorities();
        let keys = TrustedRoots::from_pem(&std::fs::read_to_string(&self.own_certificate).unwrap_or_default());
        keys.is_ok_and(|own| own.keys().iter().any(|key| platform.contains(key)))
    }

    async fn act(&self, server: &Server, row: &Row, finding: Finding) {
        add(self.metrics.detective_findings.of(finding), 1);
        let (expected, withdrawal) = {
            let known = self.known.read().expect("no holder panics");
            let member = row.account.parse().ok().and_then(|account| known.gate.member(&account));
            let owner = |record: &GateRecord| record.tenant.as_ref().map_or("platform".to_owned(), ToString::to_string);
            (member.map(|member| owner(&member.record)), member.and_then(|member| withdrawal(row, &member.record)))
        };
        let short = |text: &str| text.chars().take(200).collect::<String>();
        let subject = row.tls_peer_certs.first().map(|one| short(&one.subject));
        let name = short(&row.name);
        let why = match finding {
            Finding::Barred => "its certificate was found where it does not belong",
            Finding::InSentinel
            | Finding::ForeignCertificate
            | Finding::ForeignIssuer
            | Finding::Withdrawn
            | Finding::UnknownAccount => withdrawal.map_or("no decision let it in there", Withdrawal::as_str),
        };
        let told = format!("a connection does not belong where it is: {why}");
        let (server_name, finding_name, certificate) = (&server.name, finding.as_str(), &subject);
        match finding {
            Finding::Withdrawn | Finding::Barred => {
                info!(finding_name, server_name, row.cid, row.account, name, certificate, "{told}");
            }
            Finding::InSentinel | Finding::ForeignCertificate | Finding::ForeignIssuer | Finding::UnknownAccount => {
                error!(finding_name, server_name, row.cid, row.account, name, certificate, "{told}");
            }
        }
        let is_direct = row.account == self.direct.auth || row.account == self.direct.system;
        let is_closed = match finding {
            // The record may have been lost: closing would make an outage of that.
            Finding::UnknownAccount => false,
            Finding::ForeignCertificate if is_direct && !self.is_own_good() => false,
            Finding::InSentinel
            | Finding::ForeignCertificate
            | Finding::ForeignIssuer
            | Finding::Withdrawn
            | Finding::Barred => self.close(server, row.cid).await,
        };
        let is_barred = finding == Finding::ForeignCertificate && self.bar(row).await;
        // The credentials of SYS and AUTH are those of our own services: only an operator can give them others first.
        let is_by_token = matches!(finding, Finding::ForeignCertificate | Finding::ForeignIssuer) && !is_direct;
        let is_user_barred = is_by_token && self.bar_user(row).await;
        if matches!(finding, Finding::Withdrawn | Finding::Barred) && !is_closed {
            // It is gone: every replica looks, and one of them is the first.
            return;
        }
        let decision = Decision {
            id: Uuid::new_v4().to_string(),
            at_ms: now_ms(),
            gatekeeper: self.gatekeeper.clone(),
            outcome: finding.as_str().to_owned(),
            detail: format!(
                "{why}; {}{}{}{}",
                if is_closed { "it is closed" } else { "it is not closed" },
                if is_barred { "; its certificate is let in nowhere for a day" } else { "" },
                if is_user_barred { "; the key of its token is to be revoked" } else { "" },
                if is_direct { "; make the credentials that it came by worthless: bulkhead role rotate" } else { "" },
            ),
            expected,
            actual: subject,
            fingerprint: row.tls_peer_certs.first().map(|one| one.cert_sha256.clone()),
            account: Some(row.account.clone()),
            server: DecisionServer { id: server.id.clone(), name: server.name.clone() },
            connection: DecisionConnection { id: row.cid, host: row.ip.clone(), kind: row.kind.clone(), name },
            ..Decision::default()
        };
        if let Err(error) = self.ledger.record(&decision).await {
            warn!(error = %Chain(error.as_ref()), "what the detective found is not durable");
        }
    }

    /// Whether it is closed now.
    async fn close(&self, server: &Server, cid: u64) -> bool {
        let question = json!({ "cid": cid }).to_string();
        let asked = self.system.request(&kick(&server.id), question.into(), ANSWER_LIMIT).await;
        let said = asked.map_err(|error| Chain(&error).to_string());
        let said = said.and_then(|body| serde_json::from_slice::<Value>(&body).map_err(|error| error.to_string()));
        match said {
            Ok(said) if said["error"].is_null() => true,
            Ok(said) => {
                warn!(said = %said["error"], cid, "a connection was not closed");
                false
            }
            Err(error) => {
                warn!(error, cid, "a connection was not closed");
                self.has_missed.store(true, Ordering::Relaxed);
                false
            }
        }
    }
}
