//! The alarm behind the gatekeeper: looks at whoever is in, by the certificate that they showed, and closes what no decision
//! can have let in. It opens nothing, and what it does not know it leaves alone.
//!
//! Source: design section 3; facts, auth-callout-measured sections 7 and 8. It looks at each connection when the server says
//! that it came, and at all of them now and then, for those events that nobody heard.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::DETECTIVE_QUEUE;
use bulkhead_bus::payload::{Decision, DecisionConnection, DecisionServer};
use bulkhead_bus::question::{CONNECTED, ServerQuestion, kick, server_connections};
use bulkhead_identity::{GateRecord, Presence, TrustedRoots, Withdrawal};
use bulkhead_runtime::{Bus, Chain, Heart, Stop, now_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::gate::Gate;
use crate::knowledge::Known;
use crate::ledger::Ledger;
use crate::metrics::{Finding, Metrics, add};

const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// What one replica may know later than another one.
const LAG_LIMIT: Duration = Duration::from_millis(500);
/// When somebody is put out: within a second it has to be over.
const QUICK_LIMIT: Duration = Duration::from_millis(200);
const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// A server makes all rows for each page, and needs about 0.1 ms for one.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
const PAGE_ROWS: usize = 16_384;
const PAGES_MOST: usize = 128;
/// Longer than a connection may be in SENT while it is decided on: what a sweep saw there may be admitted by now.
const SECOND_LOOK_AFTER: Duration = Duration::from_secs(3);
/// Events that are looked at side by side.
const AT_ONCE_MOST: usize = 32;

/// The accounts that certificates do not decide about.
#[derive(Debug, Clone)]
pub struct DirectAccounts {
    pub auth: String,
    pub sentinel: String,
    pub system: String,
}

/// A connection as its server describes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Row {
    pub cid: u64,
    pub kind: String,
    pub ip: String,
    pub name: String,
    pub account: String,
    /// Of whoever was let in by a decision, the name in the user token.
    pub authorized_user: String,
    pub issuer_key: String,
    pub jwt: String,
    pub tls_peer_certs: Vec<PeerCertificate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PeerCertificate {
    pub subject: String,
    /// SHA-256 of its public key, lower-case hexadecimal.
    pub spki_sha256: String,
    pub cert_sha256: String,
}

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

/// What is wrong with a connection, if anything: pure. `roots` are the keys of the client roots.
///
/// What servers show is what the other side has sent: only when each certificate above its own is a root's or the account's
/// does the account vouch for it. It has to send its real intermediate, or TLS had not let it in.
#[must_use]
pub fn judge(row: &Row, gate: &Gate, roots: &BTreeSet<String>, direct: &DirectAccounts) -> Option<Finding> {
    let above: Vec<&String> = row.tls_peer_certs.iter().skip(1).map(|one| &one.spki_sha256).collect();
    let is_vouched = |keys: &BTreeSet<String>| {
        above.iter().any(|key| keys.contains(*key))
            && above.iter().all(|key| keys.contains(*key) || roots.contains(*key))
    };
    // It is still at its handshake.
    if row.account.is_empty() {
        return None;
    }
    if row.account == direct.sentinel {
        return Some(Finding::InSentinel);
    }
    if row.account == direct.auth || row.account == direct.system {
        let platform = gate.platform_authorities();
        // Before the platform's records are known nobody can be told from the platform.
        let is_foreign = !platform.is_empty() && !is_vouched(&platform);
        return is_foreign.then_some(Finding::ForeignCertificate);
    }
    let Some(member) = row.account.parse().ok().and_then(|account| gate.member(&account)) else {
        return Some(Finding::UnknownAccount);
    };
    let keys: BTreeSet<String> = member.record.authorities.union(&member.former).cloned().collect();
    if !is_vouched(&keys) {
        return Some(Finding::ForeignCertificate);
    }
    let is_ours =
        member.record.keys.values().any(|key| *key == row.issuer_key) || member.former.contains(&row.issuer_key);
    // Whoever was let in by a decision shows no token.
    if !is_ours || !row.jwt.is_empty() {
        return Some(Finding::ForeignIssuer);
    }
    withdrawal(row, &member.record).map(|_| Finding::Withdrawn)
}

/// Why whoever was let in by a decision would not be let in now.
fn withdrawal(row: &Row, record: &GateRecord) -> Option<Withdrawal> {
    let above: Vec<&str> = row.tls_peer_certs.iter().skip(1).map(|one| one.spki_sha256.as_str()).collect();
    let own = row.tls_peer_certs.first();
    record.withdrawal(&Presence {
        issuer_key: &row.issuer_key,
        user: &row.authorized_user,
        name: &row.name,
        host: &row.ip,
        subject: own.map_or("", |own| &own.subject),
        fingerprint: own.map_or("", |own| &own.cert_sha256),
        above: &above,
    })
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
    pub metrics: Arc<Metrics>,
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

    /// Looks at everybody now and then, until `stop`.
    ///
    /// # Errors
    /// Never: a sweep that fails is made again.
    pub async fn sweep(self: Arc<Self>, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let swept = heart.while_waiting(async {
                ticks.tick().await;
                self.look_at_all().await;
            });
            tokio::select! {
                () = swept => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Looks at everybody in an account whose record admits less than before, at once, until `stop`. Every replica does: a
    /// connection that another one is just letting in by what it knew is seen by that one.
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
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                // Most servers answer within milliseconds; the slow ones are not what the others wait for.
                for limit in [QUICK_LIMIT, ANSWER_LIMIT] {
                    this.look_into(account.as_str(), limit).await;
                }
                drop(place);
            });
        }
    }

    /// Looks at everybody in an account, on the servers that answer within `limit`.
    async fn look_into(&self, account: &str, limit: Duration) {
        let question = json!({ "auth": true, "acc": account, "limit": PAGE_ROWS });
        let subject = ServerQuestion::Connections.subject();
        let answers = self.system.request_all(subject, question.to_string().into(), usize::MAX, limit).await;
        for answer in answers.unwrap_or_default() {
            let Ok(answer) = serde_json::from_slice::<Answer>(&answer) else { continue };
            let is_all = answer.data.connections.len() < PAGE_ROWS;
            let rows = match is_all {
                true => Some(answer.data.connections),
                false => self.rows_of(&answer.server, json!({ "auth": true, "acc": account })).await,
            };
            for row in rows.unwrap_or_default() {
                if let Some(finding) = self.judge(&row) {
                    self.act(&answer.server, &row, finding).await;
                }
            }
        }
    }

    /// Looks at one connection, and acts.
    async fn look_at(&self, server: &Server, cid: u64, kind: &str, account: &str) {
        // Servers find leaves by their account only.
        let question = match kind {
            "Leafnode" => json!({ "auth": true, "acc": account }),
            _ => json!({ "auth": true, "cid": cid }),
        };
        let rows = self.rows_of(server, question).await;
        for row in rows.into_iter().flatten().filter(|row| row.cid == cid) {
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

    /// Whether what is wrong with a connection may be right by a record that this replica has not heard of yet: not when it
    /// shows a token, which no decision gives, nor when somebody else is known to be vouched for by what it shows.
    fn may_be_behind(&self, row: &Row, finding: Finding) -> bool {
        let known = self.known.read().expect("no holder panics");
        let is_anothers = |one: &PeerCertificate| !known.gate.of_authority(&one.spki_sha256).is_empty();
        match finding {
            Finding::InSentinel => false,
            Finding::ForeignIssuer => row.jwt.is_empty(),
            Finding::ForeignCertificate => !row.tls_peer_certs.iter().skip(1).any(is_anothers),
            Finding::Withdrawn | Finding::UnknownAccount => true,
        }
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
        let known = self.known.read().expect("no holder panics");
        let finding = known.is_current.then(|| judge(row, &known.gate, known.trust.roots.keys(), &self.direct));
        finding.flatten()
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
        let why = withdrawal.map_or("no decision let it in there", Withdrawal::as_str);
        let told = format!("a connection does not belong where it is: {why}");
        let (server_name, finding_name, certificate) = (&server.name, finding.as_str(), &subject);
        match finding {
            Finding::Withdrawn => {
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
            Finding::InSentinel | Finding::ForeignCertificate | Finding::ForeignIssuer | Finding::Withdrawn => {
                self.close(server, row.cid).await
            }
        };
        if finding == Finding::Withdrawn && !is_closed {
            // It is gone: every replica looks, and one of them is the first.
            return;
        }
        let decision = Decision {
            id: Uuid::new_v4().to_string(),
            at_ms: now_ms(),
            gatekeeper: self.gatekeeper.clone(),
            outcome: finding.as_str().to_owned(),
            detail: format!("{why}; {}", if is_closed { "it is closed" } else { "it is not closed" }),
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
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_bus::AccountKey;
    use bulkhead_claims::{Claims, KeyKind, SigningKey, encode};
    use bulkhead_identity::{GateBody, GateSite};

    use super::*;

    fn key() -> String {
        SigningKey::generate(KeyKind::Account).public().to_owned()
    }

    #[test]
    fn only_who_was_let_in_by_a_decision_belongs_where_it_is() {
        let operator = SigningKey::generate(KeyKind::Operator);
        let signers = BTreeSet::from([operator.public().to_owned()]);
        let (acme, core, signer) = (key(), key(), key());
        let direct = DirectAccounts { auth: key(), sentinel: key(), system: key() };
        let (own, platform) = ("0a".repeat(32), "0b".repeat(32));
        let (mut gate, roots) = (Gate::default(), BTreeSet::from(["ee".repeat(32)]));
        let row = |account: &str, authority: &str| Row {
            account: account.to_owned(),
            name: "leaf-acme-corp-oslo".to_owned(),
            issuer_key: signer.clone(),
            tls_peer_certs: ["ff".repeat(32), authority.to_owned()]
                .map(|key| PeerCertificate { spki_sha256: key, ..PeerCertificate::default() })
                .into(),
            ..Row::default()
        };
        let take = |gate: &mut Gate, account: &str, tenant: &str, authority: &str| {
            let body = GateBody {
                tenant: tenant.to_owned(),
                is_open: true,
                authorities: [authority.to_owned()].into(),
                sites: [("oslo".to_owned(), GateSite::default())].into(),
                keys: [("leaf".to_owned(), signer.clone())].into(),
                ..GateBody::default()
            };
            let token = encode(&mut Claims::new(account.to_owned(), String::new(), 1, body), &operator).unwrap();
            gate.take_record(&account.parse::<AccountKey>().unwrap(), token.as_bytes(), &signers).unwrap();
        };
        take(&mut gate, &acme, "acme-corp", &own);
        assert_eq!(judge(&row(&direct.system, &own), &gate, &roots, &direct), None, "nobody knows the platform yet");
        take(&mut gate, &core, "", &platform);
        for (account, authority, expected) in [
            (&acme, &own, None),
            (&acme, &platform, Some(Finding::ForeignCertificate)),
            (&core, &platform, None),
            (&core, &own, Some(Finding::ForeignCertificate)),
            (&direct.system, &platform, None),
            (&direct.system, &own, Some(Finding::ForeignCertificate)),
            (&direct.auth, &platform, None),
            (&direct.auth, &own, Some(Finding::ForeignCertificate)),
            (&direct.sentinel, &platform, Some(Finding::InSentinel)),
            (&key(), &platform, Some(Finding::UnknownAccount)),
        ] {
            assert_eq!(judge(&row(account, authority), &gate, &roots, &direct), expected, "{account} {authority}");
        }
        let foreign = Row { issuer_key: key(), ..row(&acme, &own) };
        assert_eq!(judge(&foreign, &gate, &roots, &direct), Some(Finding::ForeignIssuer));
        let elsewhere = Row { name: "leaf-acme-corp-rome".to_owned(), ..row(&acme, &own) };
        assert_eq!(judge(&elsewhere, &gate, &roots, &direct), Some(Finding::Withdrawn));
        let direct_user = Row { jwt: "a.b.c".to_owned(), ..row(&acme, &own) };
        assert_eq!(judge(&direct_user, &gate, &roots, &direct), Some(Finding::ForeignIssuer));
        // What it sends besides its own intermediate proves nothing.
        let chain = |keys: &[&String]| Row {
            tls_peer_certs: keys
                .iter()
                .map(|key| PeerCertificate { spki_sha256: (*key).clone(), ..PeerCertificate::default() })
                .collect(),
            ..row(&direct.system, &own)
        };
        let (end, root) = ("ff".repeat(32), "ee".repeat(32));
        for keys in [&[&end, &own, &platform][..], &[&end, &platform, &own], &[&end, &root], &[&end], &[&platform]] {
            let found = judge(&chain(keys), &gate, &roots, &direct);
            assert_eq!(found, Some(Finding::ForeignCertificate), "{keys:?}");
        }
        assert_eq!(judge(&chain(&[&end, &platform, &root]), &gate, &roots, &direct), None);
        assert_eq!(judge(&Row::default(), &gate, &roots, &direct), None, "at its handshake");
        let bare = Row { tls_peer_certs: vec![], ..row(&acme, &own) };
        assert_eq!(judge(&bare, &gate, &roots, &direct), Some(Finding::ForeignCertificate));
    }
}
