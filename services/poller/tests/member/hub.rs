//! A real nats-server in the leaf's place, and the other end of the wire: whoever answers what a poller asks its hub.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_bus::header::{Sequence, verify_request};
use bulkhead_bus::payload::{
    AssignedCheck, AssignmentPage, ErrorCode, LeaseGrant, LiveResults, Measured, Probe, Reply, ReplyError, RunOrder,
};
use bulkhead_bus::{TenantSubject, WakeUp};
use bulkhead_runtime::{Headers, eventually, now_ms};
use bulkhead_testkit::{Endpoint, Handshake, Identity, RawClient, RawMessage, find_test_tools, free_ports};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// How leases are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Grants,
    Fences,
    /// Only who speaks for the leaf link.
    FencesLink,
    /// Takes no request at all.
    Silent,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mood: Mood,
    pub(crate) checks: Vec<AssignedCheck>,
    pub(crate) generation: i64,
    pub(crate) runs: Vec<RunOrder>,
    /// By how much the hub's clock is behind.
    pub(crate) clock_behind_ms: i64,
    /// Verb and question, in order; lease answers have short times.
    pub(crate) asked: Vec<(String, Value)>,
    pub(crate) results: Vec<Measured>,
    last: BTreeMap<String, Sequence>,
}

pub(crate) struct Leaf {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) client: Arc<RawClient>,
    pub(crate) folder: TempDir,
    port: u16,
    _process: Server,
}

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_certificates(folder: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    for (name, text) in [("ca.pem", authority.pem()), ("c.pem", certificate.pem()), ("c.key", key.serialize_pem())] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let seed = folder.join("batch.key");
    std::fs::write(&seed, nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
    std::fs::set_permissions(&seed, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

async fn start_server(folder: &Path, port: u16) -> Server {
    let at = folder.display();
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\ntls {{ cert_file: \"{at}/c.pem\", key_file: \"{at}/c.key\", ca_file: \"{at}/ca.pem\", verify: true }}\n"
    );
    let config_file = folder.join("leaf.conf");
    std::fs::write(&config_file, config).unwrap();
    let log_file = folder.join("leaf.log");
    let log = File::create(&log_file).unwrap();
    let mut command = Command::new(find_test_tools().unwrap().nats_server.path);
    command.arg("-c").arg(&config_file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let server = Server(command.spawn().unwrap());
    let look = || {
        let log = std::fs::read_to_string(&log_file).unwrap_or_default();
        std::future::ready(if log.contains("Server is ready") { Ok(()) } else { Err(log) })
    };
    eventually("the leaf", LIMIT, look).await.unwrap();
    server
}

fn rows<T: Serialize>(rows: Vec<T>) -> Vec<u8> {
    serde_json::to_vec(&Reply::Rows(rows)).unwrap()
}

impl State {
    fn answer(&mut self, verb: &str, question: &Value, is_fenced: bool) -> Vec<u8> {
        match verb {
            "register" | "renew" | "deregister" if is_fenced => {
                let error = ReplyError { code: ErrorCode::Fenced, message: "another has it".to_owned() };
                serde_json::to_vec(&Reply::<()>::Error(error)).unwrap()
            }
            "register" | "renew" => {
                let revision = self.asked.len().try_into().unwrap();
                let now_ms = now_ms() - self.clock_behind_ms;
                rows(vec![LeaseGrant { revision, ttl_ms: 3_000, heartbeat_ms: 200, now_ms, is_held: false }])
            }
            "fetch_assignment" => {
                // One check a page, by name.
                let after = question["after"].as_str().unwrap_or_default().to_owned();
                let has = question["have"] == self.generation;
                let rest = self.checks.iter().filter(|check| !has && check.probe.name.as_str() > after.as_str());
                let mut rest: Vec<AssignedCheck> = rest.cloned().collect();
                rest.sort_by(|a, b| a.probe.name.cmp(&b.probe.name));
                let has_more = rest.len() > 1;
                rest.truncate(1);
                rows(vec![AssignmentPage {
                    generation: self.generation,
                    is_whole: !has,
                    checks: rest,
                    ended: Vec::new(),
                    has_more,
                }])
            }
            "fetch_runs" => rows(self.runs.clone()),
            _ => rows(vec![Value::Null]),
        }
    }

    fn hear(&mut self, message: &RawMessage) -> Option<Vec<u8>> {
        if message.subject.starts_with("live.") {
            self.results.extend(serde_json::from_slice::<LiveResults>(&message.body).unwrap().results);
            return None;
        }
        if message.subject.starts_with("results.") {
            return Some(br#"{"stream":"RESULTS_EDGE","seq":1}"#.to_vec());
        }
        let headers = Headers::from_text(message.headers.as_deref().unwrap_or_default());
        let signed = verify_request(|name| headers.get(name), &message.subject, &message.body).unwrap().unwrap();
        // Each service knows what it was asked itself.
        let service = message.subject.split('.').nth(4).unwrap().to_owned();
        let last = self.last.insert(service, signed.sequence);
        assert!(last.is_none_or(|last| signed.sequence > last), "{} after {last:?}", signed.sequence);
        if self.mood == Mood::Silent {
            return None;
        }
        let mut verb = message.subject.rsplit('.').next().unwrap().to_owned();
        let question: Value = serde_json::from_slice(&message.body).unwrap();
        let is_link = message.subject.starts_with("up.oslo.fwd.");
        let is_fenced = self.mood == Mood::Fences || (is_link && self.mood == Mood::FencesLink);
        let answer = self.answer(&verb, &question, is_fenced);
        if is_link {
            verb.insert_str(0, "leaf link: ");
        }
        self.asked.push((verb, question));
        Some(answer)
    }
}

impl Leaf {
    /// `is_asked`: whether there is a hub that answers at all.
    pub(crate) async fn start(is_asked: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_certificates(folder.path());
        let [port] = free_ports::<1>().unwrap();
        let process = start_server(folder.path(), port).await;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = Endpoint { addr, server_name: "localhost".to_owned(), handshake: Handshake::AfterInfo };
        let at = |name: &str| folder.path().join(name);
        let identity = Identity::trusting(at("ca.pem")).with_certificate(at("c.pem"), at("c.key"));
        let client = Arc::new(RawClient::connect(&endpoint, &identity).await.unwrap());
        for pattern in
            ["up.oslo.>", "live.>", "results.>"].iter().filter(|pattern| is_asked || !pattern.starts_with("up"))
        {
            client.subscribe(pattern).await.unwrap();
        }
        client.flush().await.unwrap();
        let state = State {
            mood: Mood::Grants,
            checks: Vec::new(),
            generation: 0,
            runs: Vec::new(),
            clock_behind_ms: 0,
            asked: Vec::new(),
            results: Vec::new(),
            last: BTreeMap::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let (hub, known) = (Arc::clone(&client), Arc::clone(&state));
        tokio::spawn(async move {
            let (mut seen, mut ticks) = (0, tokio::time::interval(Duration::from_millis(10)));
            loop {
                ticks.tick().await;
                for message in hub.received().into_iter().skip(seen) {
                    seen += 1;
                    let answer = known.lock().unwrap().hear(&message);
                    if let (Some(answer), Some(reply)) = (answer, &message.reply) {
                        // The test may have ended.
                        let _ = hub.publish(reply, None, None, &answer).await;
                    }
                }
            }
        });
        Self { state, client, folder, port, _process: process }
    }

    /// Settings of a connection to this leaf.
    pub(crate) fn connection(&self, name: &str) -> String {
        let (at, port) = (self.folder.path().display(), self.port);
        format!(
            "urls = [\"tls://127.0.0.1:{port}\"]\ninbox_prefix = \"_INBOX_oslo.{name}\"\n\
             tls = {{ ca_file = \"{at}/ca.pem\", cert_file = \"{at}/c.pem\", key_file = \"{at}/c.key\" }}\n"
        )
    }

    /// Settings of a poller at this leaf.
    pub(crate) fn settings(&self, more: &str) -> std::path::PathBuf {
        let at = self.folder.path().display();
        let text = format!(
            "state_dir = \"{at}/state\"\nbatch_key_file = \"{at}/batch.key\"\n\
             [identity]\ntenant = \"acme-corp\"\nsite = \"oslo\"\npoller = \"p1\"\n\
             [leaf]\n{}[labels]\nzone = \"dmz\"\n{more}",
            self.connection("p1")
        );
        let path = self.folder.path().join("poller.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Waits until `look` finds what it looks for in what was asked and measured.
    pub(crate) async fn until<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let looked = || {
            let state = self.state.lock().unwrap();
            let seen = || format!("{:#?}", state.asked.iter().rev().take(5).collect::<Vec<_>>());
            std::future::ready(look(&state).ok_or_else(seen))
        };
        eventually(what, LIMIT, looked).await.unwrap()
    }

    pub(crate) async fn wake(&self, verb: WakeUp) {
        let subject = TenantSubject::Down { site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap(), verb };
        self.client.publish(&subject.to_string(), None, None, b"").await.unwrap();
    }
}

/// A check of the hub's, of a port of this machine, every second.
pub(crate) fn assigned(name: &str, generation: i64, target: SocketAddr) -> AssignedCheck {
    AssignedCheck {
        probe: Probe {
            name: name.parse().unwrap(),
            kind: "tcp".to_owned(),
            target: target.to_string(),
            interval_s: 1,
            timeout_ms: 500,
            retries: 0,
            options: BTreeMap::new(),
        },
        generation,
        from_ms: now_ms(),
        until_ms: None,
        owed_from_ms: None,
        secrets: BTreeMap::new(),
    }
}
