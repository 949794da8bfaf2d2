//! The words between servers, the gatekeeper and whoever tells it what it knows (design section 3). All of it is spoken in
//! AUTH, but for the question, which servers ask in SENT and AUTH exports to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::AccountKey;
use crate::account_key::is_user_key;

/// Where a server asks about a connection.
pub const CALLOUT: &str = "$SYS.REQ.USER.AUTH";
/// Replicas share the questions.
pub const CALLOUT_QUEUE: &str = "gatekeeper";
/// Replicas share what servers say of whoever comes.
pub const DETECTIVE_QUEUE: &str = "detective";
/// Whom a server's question is addressed to.
pub const CALLOUT_AUDIENCE: &str = "nats-authorization-request";
/// The header in which a server says its X25519 key when its question is sealed.
pub const SERVER_XKEY: &str = "Nats-Server-Xkey";

/// What the gatekeeper knows: for each account a signed record and its sealed keys.
pub const GATE_BUCKET: &str = "GATE";
/// Where records are said on their way to the bucket: whoever listens hears them, whether the bucket takes them or not.
pub const SAID_RECORDS: &str = "$KV.GATE.*.record";
/// What the gatekeeper has decided, for audit.
pub const DECISIONS: &str = "DECISIONS";

/// A key in [`GATE_BUCKET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GateKey {
    /// The record, as an operator signing key has signed it.
    Record(AccountKey),
    /// The private halves of the account's signing keys, sealed for the gatekeeper.
    Keys(AccountKey),
}

impl GateKey {
    /// Such as `AABC….record`.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Record(account) => format!("{account}.record"),
            Self::Keys(account) => format!("{account}.keys"),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn account(&self) -> &AccountKey {
        match self {
            Self::Record(account) | Self::Keys(account) => account,
        }
    }

    /// Reads the subject on which an entry of the bucket is said.
    #[must_use]
    pub fn of_subject(subject: &str) -> Option<Self> {
        Self::parse(subject.strip_prefix("$KV.")?.strip_prefix(GATE_BUCKET)?.strip_prefix('.')?)
    }

    /// Reads what [`GateKey::text`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (account, kind) = text.split_once('.')?;
        let account = account.parse().ok()?;
        match kind {
            "record" => Some(Self::Record(account)),
            "keys" => Some(Self::Keys(account)),
            _ => None,
        }
    }
}

/// Who decides about devices that enrol, as its decisions say it.
pub const ENROLMENT_DESK: &str = "enrolment-desk";

/// Where a replica of the gatekeeper, by its user name, says what it has decided.
#[must_use]
pub fn decision_subject(gatekeeper: &str) -> String {
    format!("decision.{gatekeeper}")
}

/// Where a replica hears itself, to know that it is heard.
#[must_use]
pub fn probe_subject(gatekeeper: &str) -> String {
    format!("probe.{gatekeeper}")
}

/// Where replicas hear records that another one has heard and the bucket has not kept.
pub const RECORDS: &str = "record.*";

/// Where a replica says records that it has heard and the bucket has not kept.
#[must_use]
pub fn record_subject(gatekeeper: &str) -> String {
    format!("record.{gatekeeper}")
}

/// Where replicas hear what is barred, and the enrolment desk, which revokes it.
pub const BARRED: &str = "barred.*";

/// Where a replica says what is barred.
#[must_use]
pub fn barred_subject(gatekeeper: &str) -> String {
    format!("barred.{gatekeeper}")
}

/// The length of a SHA-256 in hexadecimal.
const FINGERPRINT_LENGTH: usize = 64;

/// What was shown where it does not belong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BarredItem {
    /// A tenant's certificate by its SHA-256, lower-case hexadecimal: the gatekeepers let it in nowhere.
    Certificate(String),
    /// Whose token was shown in an account that nobody enters by tokens. Servers refuse it once it is revoked in the account.
    User { account: AccountKey, user: String },
}

/// Why a text names nothing that can be barred.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a SHA-256 in lower-case hexadecimal nor ACCOUNT/USER with two public keys")]
pub struct BarredItemError(String);

impl FromStr for BarredItem {
    type Err = BarredItemError;

    fn from_str(text: &str) -> Result<Self, BarredItemError> {
        let is_hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == FINGERPRINT_LENGTH && text.bytes().all(is_hexadecimal) {
            return Ok(Self::Certificate(text.to_owned()));
        }
        let parted = text.split_once('/').filter(|(_, user)| is_user_key(user));
        match parted.and_then(|(account, user)| Some((account.parse().ok()?, user.to_owned()))) {
            Some((account, user)) => Ok(Self::User { account, user }),
            None => Err(BarredItemError(text.chars().take(130).collect())),
        }
    }
}

impl fmt::Display for BarredItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(fingerprint) => f.write_str(fingerprint),
            Self::User { account, user } => write!(f, "{account}/{user}"),
        }
    }
}

impl TryFrom<String> for BarredItem {
    type Error = BarredItemError;

    fn try_from(text: String) -> Result<Self, BarredItemError> {
        text.parse()
    }
}

impl From<BarredItem> for String {
    fn from(item: BarredItem) -> Self {
        item.to_string()
    }
}

/// What replicas say of one such thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barring {
    #[serde(alias = "fingerprint")]
    pub what: BarredItem,
    /// Unix seconds.
    pub until_s: i64,
}

/// How long something stays barred.
const BARRED_S: i64 = 86_400;
/// By how much another replica's clock may be ahead.
const CLOCK_S: i64 = 300;
/// More than can have been stolen at once: what is beyond it is not barred, and closed again each time.
pub const BARRED_MOST: usize = 1_000;

impl Barring {
    /// From `now_s` on, unix seconds.
    #[must_use]
    pub fn begin(what: BarredItem, now_s: i64) -> Self {
        Self { what, until_s: now_s + BARRED_S }
    }

    /// Whether it is not over, and can have been begun by now.
    #[must_use]
    pub fn is_current(&self, now_s: i64) -> bool {
        self.until_s > now_s && self.until_s <= now_s + BARRED_S + CLOCK_S
    }

    /// What can be read of what a replica says, and no more than there can be.
    #[must_use]
    pub fn read_all(body: &[u8]) -> Vec<Self> {
        let said: Vec<serde_json::Value> = serde_json::from_slice(body).unwrap_or_default();
        said.into_iter().take(BARRED_MOST).filter_map(|one| serde_json::from_value(one).ok()).collect()
    }
}

/// The streams behind bucket and decisions, whose subjects they are.
#[must_use]
pub fn gate_stream() -> String {
    format!("KV_{GATE_BUCKET}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_nothing_else_is() {
        let account: AccountKey = nkeys::KeyPair::new_account().public_key().parse().unwrap();
        for key in [GateKey::Record(account.clone()), GateKey::Keys(account.clone())] {
            let subject = format!("$KV.{GATE_BUCKET}.{}", key.text());
            assert_eq!(GateKey::of_subject(&subject).as_ref(), Some(&key));
            assert_eq!(GateKey::of_subject(&subject.replace(GATE_BUCKET, "GATES")), None);
            assert_eq!(GateKey::parse(&key.text()), Some(key));
        }
        let user = nkeys::KeyPair::new_user().public_key();
        for what in ["0a".repeat(32), format!("{account}/{user}")] {
            assert_eq!(what.parse::<BarredItem>().unwrap().to_string(), what);
        }
        for what in [
            "0A".repeat(32),
            "0a".repeat(31),
            account.to_string(),
            format!("{account}/"),
            format!("{user}/{account}"),
            format!("{account}/{user}A"),
        ] {
            assert!(what.parse::<BarredItem>().is_err(), "{what}");
        }
        let said = format!(
            r#"[{{"what": 1}}, {{"what": "{account}/{user}", "until_s": 7}}, {{"fingerprint": "{}", "until_s": 8}}]"#,
            "0a".repeat(32)
        );
        let read: Vec<i64> = Barring::read_all(said.as_bytes()).iter().map(|one| one.until_s).collect();
        assert_eq!(read, [7, 8], "one that cannot be read hides no other");
        assert!(Barring::read_all(b"{}").is_empty());
        for text in ["", "record", "a.record", &format!("{account}.other"), &format!("{account}.record.x")] {
            assert_eq!(GateKey::parse(text), None, "{text}");
        }
    }
}
