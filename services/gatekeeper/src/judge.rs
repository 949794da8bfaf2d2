//! Whether somebody who is in belongs there, by what a server says of the connection. Pure.

use std::collections::BTreeSet;

use bulkhead_bus::AccountKey;
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
/// does the account vouch for it. It has to send its real intermediate, or TLS had not let it in. Whoever was let in by a
/// decision has shown its chain to a gatekeeper: what it sends besides, and is nobody's, proves nothing against it.
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
    let is_ours =
        member.record.keys.values().any(|key| *key == row.issuer_key) || member.former.contains(&row.issuer_key);
    // Whoever was let in by a decision shows no token.
    let is_decided = is_ours && row.jwt.is_empty();
    let keys: BTreeSet<String> = member.record.authorities.union(&member.former).cloned().collect();
    let is_besides = |key: &String| is_decided && gate.of_authority(key).is_empty();
    let is_vouched = above.iter().any(|key| keys.contains(*key))
        && above.iter().all(|key| keys.contains(*key) || roots.contains(*key) || is_besides(key));
    if !is_vouched {
        return Some(Finding::ForeignCertificate);
    }
    if !is_decided {
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

/// The accounts of the tenant whose certificate somebody shows where it does not belong: one that names the tenant, with its
/// authority above it. Anybody's public intermediate can be sent besides, so that alone says nothing. The platform's own are no
/// attacker's: they are closed there, and not barred from where they work.
#[must_use]
pub fn owners(row: &Row, gate: &Gate) -> Vec<AccountKey> {
    let subject = row.tls_peer_certs.first().map_or("", |own| own.subject.as_str());
    // As in `p1.oslo.acme-corp.serviceradar`.
    let names = |tenant: &str| subject.split('.').nth(2) == Some(tenant);
    let above = row.tls_peer_certs.iter().skip(1).flat_map(|one| gate.of_authority(&one.spki_sha256));
    let records = above.map(|member| &member.record).filter(|record| record.account.as_str() != row.account);
    let own = records.filter(|record| record.tenant.as_ref().is_some_and(|tenant| names(tenant.as_str())));
    own.map(|record| record.account.clone()).collect()
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
        Finding::Barred => false,
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_claims::{Claims, KeyKind, SigningKey, encode};
    use bulkhead_identity::{GateBody, GateSite};

    use super::*;

    fn key() -> String {
        SigningKey::generate(KeyKind::Account).public().to_owned()
    }

    /// A gate that knows one tenant and the platform.
    struct Scene {
        acme: String,
        core: String,
        signer: String,
        direct: DirectAccounts,
        own: String,
        platform: String,
        gate: Gate,
        operator: SigningKey,
    }

    const ROOT: &str = "the key of the root";
    const END: &str = "the key of the certificate itself";

    impl Scene {
        fn before_the_platform_is_known() -> Self {
            let mut scene = Self {
                acme: key(),
                core: key(),
                signer: key(),
                direct: DirectAccounts { auth: key(), sentinel: key(), system: key() },
                own: "0a".repeat(32),
                platform: "0b".repeat(32),
                gate: Gate::default(),
                operator: SigningKey::generate(KeyKind::Operator),
            };
            scene.take(&scene.acme.clone(), "acme-corp", &scene.own.clone());
            scene
        }

        fn new() -> Self {
            let mut scene = Self::before_the_platform_is_known();
            scene.take(&scene.core.clone(), "", &scene.platform.clone());
            scene
        }

        fn take(&mut self, account: &str, tenant: &str, authority: &str) {
            let body = GateBody {
                tenant: tenant.to_owned(),
                is_open: true,
                authorities: [authority.to_owned()].into(),
                sites: [("oslo".to_owned(), GateSite::default())].into(),
                keys: [("leaf".to_owned(), self.signer.clone())].into(),
                ..GateBody::default()
            };
            let token = encode(&mut Claims::new(account.to_owned(), String::new(), 1, body), &self.operator).unwrap();
            let signers = BTreeSet::from([self.operator.public().to_owned()]);
            self.gate.take_record(&account.parse::<AccountKey>().unwrap(), token.as_bytes(), &signers).unwrap();
        }

        fn row(&self, account: &str, authority: &str) -> Row {
            Row {
                account: account.to_owned(),
                name: "leaf-acme-corp-oslo".to_owned(),
                issuer_key: self.signer.clone(),
                tls_peer_certs: chain(&[END, authority]),
                ..Row::default()
            }
        }

        fn judge(&self, row: &Row) -> Option<Finding> {
            judge(row, &self.gate, &BTreeSet::from([ROOT.to_owned()]), &self.direct)
        }
    }

    fn chain(keys: &[&str]) -> Vec<PeerCertificate> {
        keys.iter().map(|&key| PeerCertificate { spki_sha256: key.to_owned(), ..PeerCertificate::default() }).collect()
    }

    #[test]
    fn only_who_was_let_in_by_a_decision_belongs_where_it_is() {
        let scene = Scene::new();
        let (own, platform, direct) = (&scene.own, &scene.platform, &scene.direct);
        for (account, authority, expected) in [
            (&scene.acme, own, None),
            (&scene.acme, platform, Some(Finding::ForeignCertificate)),
            (&scene.core, platform, None),
            (&scene.core, own, Some(Finding::ForeignCertificate)),
            (&direct.system, platform, None),
            (&direct.system, own, Some(Finding::ForeignCertificate)),
            (&direct.auth, platform, None),
            (&direct.auth, own, Some(Finding::ForeignCertificate)),
            (&direct.sentinel, platform, Some(Finding::InSentinel)),
            (&key(), platform, Some(Finding::UnknownAccount)),
        ] {
            assert_eq!(scene.judge(&scene.row(account, authority)), expected, "{account} {authority}");
        }
        let good = || scene.row(&scene.acme, own);
        for (row, expected) in [
            (Row { issuer_key: key(), ..good() }, Finding::ForeignIssuer),
            (Row { jwt: "a.b.c".to_owned(), ..good() }, Finding::ForeignIssuer),
            (Row { name: "leaf-acme-corp-rome".to_owned(), ..good() }, Finding::Withdrawn),
            (Row { tls_peer_certs: vec![], ..good() }, Finding::ForeignCertificate),
        ] {
            assert_eq!(scene.judge(&row), Some(expected), "{row:?}");
        }
    }

    #[test]
    fn who_is_at_its_handshake_or_comes_before_the_platform_is_known_is_left_alone() {
        let scene = Scene::before_the_platform_is_known();
        assert_eq!(scene.judge(&scene.row(&scene.direct.system, &scene.own)), None);
        assert_eq!(Scene::new().judge(&Row::default()), None);
    }

    #[test]
    fn what_is_sent_besides_the_intermediate_proves_nothing() {
        let scene = Scene::new();
        let (own, platform) = (scene.own.as_str(), scene.platform.as_str());
        let shows = |keys: &[&str]| Row { tls_peer_certs: chain(keys), ..scene.row(&scene.direct.system, own) };
        for keys in [&[END, own, platform][..], &[END, platform, own], &[END, ROOT], &[END], &[platform]] {
            assert_eq!(scene.judge(&shows(keys)), Some(Finding::ForeignCertificate), "{keys:?}");
        }
        assert_eq!(scene.judge(&shows(&[END, platform, ROOT])), None);
    }

    #[test]
    fn whoever_was_decided_on_may_send_what_is_nobodys_besides_and_nothing_of_anybody_else() {
        let scene = Scene::new();
        let (own, platform) = (scene.own.as_str(), scene.platform.as_str());
        let shows = |keys: &[&str]| Row { tls_peer_certs: chain(keys), ..scene.row(&scene.acme, own) };
        for keys in [&[END, own, "a key that is nobody's"][..], &[END, "a key that is nobody's", own, ROOT]] {
            assert_eq!(scene.judge(&shows(keys)), None, "{keys:?}");
            let token = Row { jwt: "a.b.c".to_owned(), ..shows(keys) };
            assert_eq!(scene.judge(&token), Some(Finding::ForeignCertificate), "by a token: {keys:?}");
        }
        for keys in [&[END, own, platform][..], &[END, platform, own], &[END, "a key that is nobody's"]] {
            assert_eq!(scene.judge(&shows(keys)), Some(Finding::ForeignCertificate), "{keys:?}");
        }
    }

    #[test]
    fn a_certificate_is_a_tenants_when_it_names_the_tenant_and_its_authority_is_above_it() {
        let scene = Scene::new();
        let (own, platform) = (scene.own.as_str(), scene.platform.as_str());
        let shows = |account: &str, subject: &str, keys: &[&str]| {
            let mut row = Row { tls_peer_certs: chain(keys), ..scene.row(account, own) };
            row.tls_peer_certs[0].subject = subject.to_owned();
            owners(&row, &scene.gate).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (system, acme) = (&scene.direct.system, &scene.acme);
        let (alice, carol) = ("CN=alice.user.acme-corp.serviceradar", "CN=acme-corp.user.platform.serviceradar");
        let of_acme = vec![acme.clone()];
        assert_eq!(shows(system, alice, &[END, own]), of_acme);
        assert_eq!(shows(system, alice, &[END, platform, "a key that is nobody's", own]), of_acme, "hidden");
        for (account, subject, keys) in [
            (system, carol, &[END, platform, own][..]),
            (system, alice, &[END, platform]),
            (acme, alice, &[END, own, platform]),
        ] {
            assert_eq!(shows(account, subject, keys), Vec::<String>::new(), "{subject} {keys:?}");
        }
    }

    #[test]
    fn whom_another_replica_may_have_let_in_is_looked_at_again_and_a_stranger_is_not() {
        let scene = Scene::new();
        let good = || scene.row(&scene.acme, &scene.own);
        let shows = |keys: &[&str]| Row { tls_peer_certs: chain(keys), ..good() };
        for (row, finding, expected) in [
            (Row { issuer_key: key(), ..good() }, Finding::ForeignIssuer, true),
            (Row { jwt: "a.b.c".to_owned(), ..good() }, Finding::ForeignIssuer, false),
            (Row { name: "leaf-acme-corp-rome".to_owned(), ..good() }, Finding::Withdrawn, true),
            (shows(&[END, "a key that nobody knows"]), Finding::ForeignCertificate, true),
            (shows(&[END, &scene.platform]), Finding::ForeignCertificate, false),
            (scene.row(&scene.direct.sentinel, &scene.platform), Finding::InSentinel, false),
        ] {
            assert_eq!(may_be_behind(&row, finding, &scene.gate), expected, "{finding:?} {row:?}");
        }
    }
}
