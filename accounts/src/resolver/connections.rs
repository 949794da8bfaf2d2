//! Who is connected to which server, as which user of which account; and closing one connection.

use std::collections::BTreeSet;

use bulkhead_bus::BatchKey;
use bulkhead_bus::question::{ServerQuestion, kick as kick_subject};
use bulkhead_identity::Presence;
use bulkhead_runtime::Bus;
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::asking::{NotAsked, Said, ServerFacts, ask};

/// Rows that are asked of each server at once.
const PAGE_ROWS: usize = 1_024;
/// So many pages of one server are read: two million connections.
const PAGES_MOST: usize = 2_048;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionKind {
    Client,
    Leaf,
}

/// A connection that a server has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionFacts {
    pub server: ServerFacts,
    pub cid: u64,
    pub kind: ConnectionKind,
    /// What the client calls itself.
    pub name: String,
    /// The user's public key, and its name in its token.
    pub user: String,
    pub user_name: String,
    pub account: String,
    /// Which of the account's signing keys signed the user.
    pub issuer_key: String,
    /// The role of that key; see [`name_roles`].
    pub role: Option<String>,
    /// Of the user's token, in unix seconds; `None` for bearers, whose tokens servers do not show.
    pub issued_at: Option<i64>,
    pub is_bearer: bool,
    pub host: String,
    pub certificate: ShownCertificate,
    /// Since when, in unix nanoseconds: two connections are rarely as old as each other.
    pub since_ns: i128,
}

/// The certificates that the other side has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ShownCertificate {
    /// Of its own, such as `CN=p1.oslo.acme-corp.serviceradar`.
    pub subject: String,
    /// SHA-256 of its own.
    pub fingerprint: String,
    /// SHA-256 of the keys of those behind it.
    pub above: Vec<String>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    total: usize,
    #[serde(default)]
    connections: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    cid: u64,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    start: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    authorized_user: String,
    #[serde(default)]
    account: String,
    #[serde(default)]
    jwt: String,
    #[serde(default)]
    issuer_key: String,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    tls_peer_certs: Vec<PeerCertificate>,
}

#[derive(Deserialize)]
struct PeerCertificate {
    #[serde(default)]
    subject: String,
    #[serde(default)]
    spki_sha256: String,
    #[serde(default)]
    cert_sha256: String,
}

fn shown(certificates: Vec<PeerCertificate>) -> ShownCertificate {
    let mut certificates = certificates.into_iter();
    let Some(own) = certificates.next() else { return ShownCertificate::default() };
    let above = certificates.map(|one| one.spki_sha256).collect();
    ShownCertificate { subject: own.subject, fingerprint: own.cert_sha256, above }
}

impl ConnectionFacts {
    /// As a record of the gatekeepers judges it; `above` are the keys of the certificates behind its own.
    #[must_use]
    pub fn presence<'a>(&'a self, above: &'a [&'a str]) -> Presence<'a> {
        Presence {
            issuer_key: &self.issuer_key,
            user: &self.user_name,
            name: &self.name,
            host: &self.host,
            subject: &self.certificate.subject,
            fingerprint: &self.certificate.fingerprint,
            above,
        }
    }
}

/// What a user's token says. The server has checked its signature.
fn user_claims(token: &str) -> Value {
    let body = token.split('.').nth(1).and_then(|body| BASE64URL_NOPAD.decode(body.as_bytes()).ok());
    body.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default()
}

fn facts(server: &ServerFacts, row: Row) -> ConnectionFacts {
    let user = user_claims(&row.jwt);
    let since = OffsetDateTime::parse(&row.start, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp_nanos);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // Whoever was let in by a gatekeeper shows no token, and the server names the user; by credentials it is the user's key,
    // and of a leaf nothing but its token.
    let is_let_in = row.jwt.is_empty() && row.authorized_user.parse::<BatchKey>().is_err();
    let (public, user_name) = match (is_let_in, row.authorized_user.is_empty()) {
        (true, _) => (String::new(), row.authorized_user),
        (false, true) => (text(&user["sub"]), text(&user["name"])),
        (false, false) => (row.authorized_user, text(&user["name"])),
    };
    ConnectionFacts {
        server: server.clone(),
        cid: row.cid,
        kind: if row.kind == "Leafnode" { ConnectionKind::Leaf } else { ConnectionKind::Client },
        name: row.name,
        user: public,
        user_name,
        account: row.account,
        issuer_key: row.issuer_key,
        role: None,
        issued_at: user["iat"].as_i64(),
        is_bearer: row.jwt.is_empty(),
        host: row.ip,
        certificate: shown(row.tls_peer_certs),
        since_ns: since,
    }
}

fn question(account: Option<&str>, offset: usize, server: Option<&str>) -> String {
    let mut question = json!({"auth": true, "limit": PAGE_ROWS, "offset": offset});
    if let Some(account) = account {
        question["acc"] = account.into();
    }
    if let Some(server) = server {
        question["server_name"] = server.into();
        question["exact_match"] = true.into();
    }
    question.to_string()
}

/// The connections of a page; `None` when it is the last.
fn read_page(said: Said, found: &mut Vec<ConnectionFacts>) -> Option<ServerFacts> {
    let page: Page = serde_json::from_value(said.data).ok()?;
    let rows = page.connections.len();
    let is_last = rows == 0 || rows >= page.total;
    found.extend(page.connections.into_iter().map(|row| facts(&said.server, row)));
    (!is_last).then_some(said.server)
}

/// Every client and leaf of `account`, or of all accounts, on the servers that answer.
///
/// # Errors
/// When the connection cannot ask.
pub async fn connections(
    system: &Bus,
    account: Option<&str>,
    expected: usize,
) -> Result<Vec<ConnectionFacts>, NotAsked> {
    let subject = ServerQuestion::Connections.subject();
    let mut found = Vec::new();
    let first = ask(system, subject, question(account, 0, None), expected).await?;
    let more: Vec<ServerFacts> = first.into_iter().filter_map(|said| read_page(said, &mut found)).collect();
    for server in more {
        for page in 1..PAGES_MOST {
            let asked = ask(system, subject, question(account, page * PAGE_ROWS, Some(&server.name)), 1).await?;
            // A page that ends before the rows of all pages do is not the last, unless it is empty.
            let before = found.len();
            for said in asked {
                read_page(said, &mut found);
            }
            if found.len() - before < PAGE_ROWS {
                break;
            }
        }
    }
    // Rows may move from page to page while we read.
    let mut seen = BTreeSet::new();
    found.retain(|one| seen.insert((one.server.id.clone(), one.cid)));
    Ok(found)
}

/// Fills in the roles of the keys that `body`, an account's claims, has or had.
pub fn name_roles(connections: &mut [ConnectionFacts], body: &Value) {
    let keys = body["signing_keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    for connection in connections {
        let scope = keys.iter().find(|scope| scope["key"] == connection.issuer_key.as_str());
        connection.role = scope.and_then(|scope| scope["role"].as_str()).map(str::to_owned);
    }
}

/// Why a connection was not closed.
#[derive(Debug, thiserror::Error)]
pub enum KickError {
    #[error("close connection {cid}")]
    NotAsked { cid: u64, source: NotAsked },
    #[error("the server that has connection {0} does not answer")]
    Silent(u64),
    #[error("connection {cid} is not closed: {said}")]
    Refused { cid: u64, said: String },
}

/// Closes a connection; its client may come back at once.
///
/// # Errors
/// When the server does not answer or has no such connection.
pub async fn kick(system: &Bus, server_id: &str, cid: u64) -> Result<(), KickError> {
    let asked = ask(system, &kick_subject(server_id), json!({"cid": cid}).to_string(), 1).await;
    let answers = asked.map_err(|source| KickError::NotAsked { cid, source })?;
    match answers.into_iter().next() {
        None => Err(KickError::Silent(cid)),
        Some(Said { error: Some(said), .. }) => Err(KickError::Refused { cid, said }),
        Some(Said { error: None, .. }) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_with_its_users_token_and_without_one() {
        let server = ServerFacts { name: "hub-1".to_owned(), id: "N".to_owned(), version: String::new() };
        let body = BASE64URL_NOPAD.encode(br#"{"name":"p1","sub":"U1","iat":7,"nats":{}}"#);
        let row = json!({"cid": 5, "kind": "Leafnode", "start": "1970-01-01T00:00:01.000000002Z", "account": "A",
            "issuer_key": "AK", "jwt": format!("x.{body}.")});
        let mut found = vec![facts(&server, serde_json::from_value(row).unwrap())];
        assert_eq!((found[0].user.as_str(), found[0].user_name.as_str(), found[0].issued_at), ("U1", "p1", Some(7)));
        assert!(!found[0].is_bearer && found[0].kind == ConnectionKind::Leaf && found[0].since_ns == 1_000_000_002);
        name_roles(&mut found, &json!({"signing_keys": ["AX", {"key": "AK", "role": "leaf"}]}));
        assert_eq!(found[0].role.as_deref(), Some("leaf"));
        let bare = facts(&server, serde_json::from_value(json!({"cid": 6, "jwt": "garbage"})).unwrap());
        assert_eq!((bare.kind, bare.user.as_str(), bare.issued_at), (ConnectionKind::Client, "", None));
        let key = nkeys::KeyPair::new_user().public_key();
        let bearer = facts(&server, serde_json::from_value(json!({"cid": 7, "authorized_user": key})).unwrap());
        assert!(bearer.is_bearer && bearer.user == key && bearer.user_name.is_empty());
        let certificates =
            json!([{"subject": "CN=a", "cert_sha256": "0a"}, {"spki_sha256": "0b"}, {"spki_sha256": "0c"}]);
        let row = json!({"cid": 8, "authorized_user": "ann", "ip": "10.1.2.3", "tls_peer_certs": certificates});
        let let_in = facts(&server, serde_json::from_value(row).unwrap());
        assert_eq!((let_in.user.as_str(), let_in.user_name.as_str(), let_in.host.as_str()), ("", "ann", "10.1.2.3"));
        let shown = let_in.certificate;
        assert_eq!((shown.subject.as_str(), shown.fingerprint.as_str(), shown.above.len()), ("CN=a", "0a", 2));
    }
}
