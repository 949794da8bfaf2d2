//! Whether somebody who is in belongs there, by what a server says of the connection. Pure.

use std::collections::BTreeSet;

use bulkhead_identity::{GateRecord, Presence, Withdrawal};
use serde::Deserialize;

use crate::gate::Gate;
use crate::metrics::Finding;

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
#[must_use]
pub fn withdrawal(row: &Row, record: &GateRecord) -> Option<Withdrawal> {
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

/// Whether what is wrong with a connection may be right by a record that this replica has not heard of yet: not when it
/// shows a token, which no decision gives, nor when somebody else is known to be vouched for by what it shows.
#[must_use]
pub fn may_be_behind(row: &Row, finding: Finding, gate: &Gate) -> bool {
    let is_anothers = |one: &PeerCertificate| !gate.of_authority(&one.spki_sha256).is_empty();
    match finding {
        Finding::InSentinel => false,
        Finding::ForeignIssuer => row.jwt.is_empty(),
        Finding::ForeignCertificate => !row.tls_peer_certs.iter().skip(1).any(is_anothers),
        Finding::Withdrawn | Finding::UnknownAccount => true,
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
        // Whoever another replica may have let in by what is not known here yet is looked at again; a stranger is not.
        let unknown = "0d".repeat(32);
        for (row, finding, expected) in [
            (&foreign, Finding::ForeignIssuer, true),
            (&direct_user, Finding::ForeignIssuer, false),
            (&elsewhere, Finding::Withdrawn, true),
            (&chain(&[&end, &unknown]), Finding::ForeignCertificate, true),
            (&chain(&[&end, &platform]), Finding::ForeignCertificate, false),
            (&row(&direct.sentinel, &platform), Finding::InSentinel, false),
        ] {
            assert_eq!(may_be_behind(row, finding, &gate), expected, "{finding:?} {row:?}");
        }
        assert_eq!(judge(&Row::default(), &gate, &roots, &direct), None, "at its handshake");
        let bare = Row { tls_peer_certs: vec![], ..row(&acme, &own) };
        assert_eq!(judge(&bare, &gate, &roots, &direct), Some(Finding::ForeignCertificate));
    }
}
