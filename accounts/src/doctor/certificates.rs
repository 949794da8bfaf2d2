//! Certificates and credentials on disk: how long they are good, whose they are, and whether they hold together.
//!
//! What the listeners really serve is in `listeners.rs`.

use std::path::{Path, PathBuf};

use bulkhead_runtime::{Chain, Credentials};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use super::finding::{Area, Finding, Level, Look};
use super::home::Home;
use super::known::Known;
use super::trust::{self, Certificate, Kind};
use bulkhead_claims::{UserBody, decode};

static EXPIRY: Look = Look {
    area: Area::Certificates,
    name: "certificate-expiry",
    rule: "a certificate has more than a third of its life and more than 14 days left (half, when it lives less than 28)",
    meaning: "when it ends nobody can connect with it, or to what serves it, and results wait where they are",
};
static KEY: Look = Look {
    area: Area::Certificates,
    name: "certificate-key",
    rule: "the key beside a certificate is that certificate's",
    meaning: "whoever uses it cannot connect, or a server does not start",
};
static CHAIN: Look = Look {
    area: Area::Certificates,
    name: "certificate-chain",
    rule: "a certificate leads to the root of its kind: client, server, route, or itself for a site's listener",
    meaning: "it is refused, or it was put there by somebody else",
};
static NAME: Look = Look {
    area: Area::Certificates,
    name: "certificate-name",
    rule: "common name, DNS name and URI of a certificate say the same",
    meaning: "it may be taken for somebody else's",
};
static CREDENTIALS: Look = Look {
    area: Area::Certificates,
    name: "credentials-expiry",
    rule: "credentials have more than a third of their life and more than 14 days left (half, when they live less than 28)",
    meaning: "when they end the hub refuses whoever uses them: a leaf, core, or the people",
};
static SIGNER: Look = Look {
    area: Area::Certificates,
    name: "credentials-signer",
    rule: "credentials are signed by a key that their account still has",
    meaning: "the hub refuses them",
};

pub(super) const LOOKS: &[&Look] = &[&EXPIRY, &KEY, &CHAIN, &NAME, &CREDENTIALS, &SIGNER];

const SOON: Duration = Duration::days(14);

/// What is left between `from` and `until`, and how bad that is.
pub(super) fn judge_life(from: OffsetDateTime, until: OffsetDateTime, now: OffsetDateTime) -> (Level, String) {
    let (life, left) = (until - from, until - now);
    let date = until.date();
    if left <= Duration::ZERO {
        return (Level::Fail, format!("ended on {date}"));
    }
    let days = left.whole_days();
    let found = format!("{days} of {} days left, until {date}", life.whole_days());
    let is_short = left < life / 3 || left < SOON.min(life / 2);
    (if is_short { Level::Warn } else { Level::Ok }, found)
}

fn kind_of(shown: &str) -> Kind {
    let name = shown.rsplit('/').next().unwrap_or(shown);
    let is_hub = shown.starts_with("hub");
    match (shown.strip_prefix("pki/"), name) {
        (Some(root), _) if root.ends_with("-root.crt") => Kind::Root,
        (Some(_), _) => Kind::Intermediate,
        (None, "listener.crt") => Kind::Listener,
        (None, name) if is_hub && name.starts_with("route") => Kind::Route,
        (None, _) if is_hub || shown.starts_with("enrolment-desk/") => Kind::Server,
        (None, _) => Kind::Client,
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(chain) if chain.is_empty() => Err("it holds no certificate".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

/// What is done about a certificate of each kind.
fn renewal(home: &Home, kind: Kind) -> String {
    match kind {
        Kind::Root | Kind::Intermediate => {
            "replace it with `bulkhead ca rotate`, which `bulkhead ca list` has the name for".to_owned()
        }
        Kind::Server | Kind::Route | Kind::Client | Kind::Listener => home.restart_advice(),
    }
}

fn certificate_findings(home: &Home, path: &Path) -> Vec<Finding> {
    let shown = home.shown(path);
    let kind = kind_of(&shown);
    let restore = format!("restore {shown} from a backup; {}", renewal(home, kind));
    let chain = match read_chain(path) {
        Ok(chain) => chain,
        Err(why) => return vec![CHAIN.fail(&shown, format!("it is not readable: {why}"), restore)],
    };
    let certificate = match Certificate::read(&chain[0]) {
        Ok(certificate) => certificate,
        Err(why) => return vec![CHAIN.fail(&shown, format!("it is no certificate: {why}"), restore)],
    };
    let (level, found) = judge_life(certificate.not_before, certificate.not_after, home.now);
    let mut findings = vec![EXPIRY.at(level, &shown, found, &renewal(home, kind))];
    let is_authority = matches!(kind, Kind::Root | Kind::Intermediate);
    // While an authority is rotated its file holds two, and the key is that of the one that signs.
    let holders = if is_authority { &chain[..] } else { &chain[..1] };
    let public_keys = holders.iter().flat_map(Certificate::read).map(|one| one.public_key).collect();
    findings.push(key_finding(&shown, public_keys, &path.with_extension("key"), &restore));
    // Judged at a time when it was good: how long it is good is another look.
    let at = home.now.min(certificate.not_after - Duration::SECOND).max(certificate.not_before);
    findings.push(match trust::verify(kind, &chain, &roots_folder(home), at) {
        Ok(()) => CHAIN.ok(&shown, kind.root_name()),
        Err(why) => CHAIN.fail(&shown, why, restore.clone()),
    });
    if !is_authority {
        findings.push(match certificate.disagreement() {
            None => NAME.ok(&shown, certificate.common_name),
            Some(why) => NAME.fail(&shown, why, restore),
        });
    }
    findings
}

fn roots_folder(home: &Home) -> PathBuf {
    home.layout.authority()
}

fn key_finding(shown: &str, public_keys: Vec<Vec<u8>>, key_file: &Path, restore: &str) -> Finding {
    if !key_file.exists() {
        return KEY.fail(shown, "its key is gone", restore);
    }
    match trust::public_half(key_file) {
        Ok(public) if public_keys.contains(&public) => KEY.ok(shown, "its own"),
        Ok(_) => KEY.fail(shown, "the key beside it is another one", restore),
        Err(why) => KEY.fail(shown, format!("the key is not readable: {why}"), restore),
    }
}

fn credentials_findings(home: &Home, known: Option<&Known>, path: &Path) -> Vec<Finding> {
    let shown = home.shown(path);
    let renew = home.restart_advice();
    let read = Credentials::read(path).map_err(|error| Chain(&error).to_string());
    let read = read.and_then(|credentials| {
        decode::<UserBody>(&credentials.jwt).map_err(|error| format!("its token is not readable: {}", Chain(&error)))
    });
    let claims = match read {
        Ok(claims) => claims,
        Err(why) => return vec![CREDENTIALS.fail(&shown, why, renew)],
    };
    let time = |unix_s: i64| OffsetDateTime::from_unix_timestamp(unix_s).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut findings = vec![match claims.exp {
        None => CREDENTIALS.warn(&shown, "they never end", renew.clone()),
        Some(until) => {
            let (level, found) = judge_life(time(claims.iat), time(until), home.now);
            CREDENTIALS.at(level, &shown, found, &renew)
        }
    }];
    let Some(known) = known else { return findings };
    findings.push(match known.keyed(&claims.nats.issuer_account) {
        None => SIGNER.fail(&shown, "there is no account of theirs in the operator store", renew),
        Some(account) if account.claims.nats.signing_keys.iter().any(|key| key.key() == claims.iss) => {
            SIGNER.ok(&shown, &account.name)
        }
        Some(account) => SIGNER.fail(&shown, format!("account {} has no such key any more", account.name), renew),
    });
    findings
}

pub(super) fn look(home: &Home, known: Option<&Known>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in home.entries() {
        match path.extension().and_then(|end| end.to_str()) {
            Some("crt") => findings.extend(certificate_findings(home, &path)),
            Some("creds") => findings.extend(credentials_findings(home, known, &path)),
            Some(_) | None => {}
        }
    }
    if findings.is_empty() {
        findings.push(CHAIN.fail("pki", "there is no certificate at all", home.restart_advice()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use bulkhead_bus::Role;

    use super::*;
    use crate::certificates::{
        Authority, AuthorityName, CertificateFiles, ClientIdentity, Objections, RotationStep, TrustDomain,
    };
    use crate::files::write_secret;
    use crate::operator::{OperatorStore, UserRequest};

    fn day(number: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(number)
    }

    #[test]
    fn a_third_of_a_life_and_two_weeks_are_enough() {
        for (life, left, level) in [
            (90, 31, Level::Ok),
            (90, 29, Level::Warn),
            (30, 15, Level::Ok),
            (30, 13, Level::Warn),
            (10, 6, Level::Ok),
            (10, 4, Level::Warn),
            (3_650, 1_200, Level::Warn),
            (90, 0, Level::Fail),
            (90, -1, Level::Fail),
        ] {
            assert_eq!(judge_life(day(0), day(life), day(life - left)).0, level, "{left} of {life}");
        }
    }

    #[test]
    fn what_a_certificate_is_for_follows_from_where_it_lies() {
        for (path, kind) in [
            ("pki/server-root.crt", Kind::Root),
            ("pki/tenant-a.crt", Kind::Intermediate),
            ("hub/hub.crt", Kind::Server),
            ("hub-2/route.crt", Kind::Route),
            ("enrolment-desk/desk.crt", Kind::Server),
            ("sites/a/b/tls/listener.crt", Kind::Listener),
            ("sites/a/b/tls/leaf.crt", Kind::Client),
            ("profiles/ops/admin.crt", Kind::Client),
        ] {
            assert_eq!(kind_of(path), kind, "{path}");
        }
    }

    /// What is wrong, as `level look`.
    fn wrong(home: &Home) -> Vec<String> {
        let known = Known::read(home).ok();
        let findings = look(home, known.as_ref()).into_iter().filter(|finding| finding.level > Level::Skip);
        findings.map(|finding| format!("{} {}", finding.level.as_str(), finding.look.name)).collect()
    }

    #[test]
    fn certificates_of_every_kind_are_well_and_one_with_a_short_life_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let home = Home::read(folder.path(), now);
        assert_eq!(wrong(&home), ["fail certificate-chain"], "an empty home has no certificates");
        let authority = Authority::new(home.layout.authority(), TrustDomain::default());
        let (tenant, site) = ("acme-corp".parse().unwrap(), "oslo".parse().unwrap());
        authority.ensure_roots(now).unwrap();
        authority.ensure_tenant(&tenant, now).unwrap();
        let hub = |name: &str| CertificateFiles::named(&home.layout.hub(), name);
        authority.issue_hub("hub-1", &[], &hub("hub"), now).unwrap();
        authority.issue_route("hub-1", &[], &hub("route"), now).unwrap();
        let tls = home.layout.site(&tenant, &site).join("tls");
        authority.issue_site_listener(&tenant, &site, &CertificateFiles::named(&tls, "listener"), now).unwrap();
        let leaf = ClientIdentity::Leaf { tenant, site };
        authority.issue_client(&leaf, &CertificateFiles::named(&tls, "leaf"), now).unwrap();
        assert_eq!(wrong(&home), Vec::<String>::new());
        authority.issue_client(&leaf, &CertificateFiles::named(&tls, "leaf"), now - Duration::days(77)).unwrap();
        assert_eq!(wrong(&home), ["warn certificate-expiry"]);
        std::fs::remove_file(tls.join("leaf.key")).unwrap();
        assert_eq!(wrong(&home), ["warn certificate-expiry", "fail certificate-key"]);
    }

    #[test]
    fn an_authority_that_is_being_rotated_is_well_and_a_stranger_among_them_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let home = Home::read(folder.path(), now);
        let authority = Authority::new(home.layout.authority(), TrustDomain::default());
        let (tenant, site) = ("acme-corp".parse().unwrap(), "oslo".parse().unwrap());
        authority.ensure_roots(now).unwrap();
        authority.ensure_tenant(&tenant, now).unwrap();
        let leaf = ClientIdentity::Leaf { tenant: tenant.clone(), site };
        let files = |name: &str| CertificateFiles::named(&home.layout.hub(), name);
        let issue = |end: &str| {
            let client = CertificateFiles::named(&home.layout.home().join("sites").join(end), "leaf");
            authority.issue_client(&leaf, &client, now).unwrap();
            authority.issue_hub("hub-1", &[], &files(&format!("hub{end}")), now).unwrap();
            authority.issue_route("hub-1", &[], &files(&format!("route{end}")), now).unwrap();
        };
        issue("1");
        let names: [AuthorityName; 5] = ["client-root", "server-root", "route-root", "platform", "tenant/acme-corp"]
            .map(|name| name.parse().unwrap());
        for name in &names {
            authority.rotate(name, (RotationStep::Prepare, Objections::Heed), now).unwrap();
            assert_eq!(wrong(&home), Vec::<String>::new(), "{name}");
        }
        issue("2");
        assert_eq!(wrong(&home), Vec::<String>::new());
        let other = tempfile::tempdir().unwrap();
        let stranger = Authority::new(other.path().to_owned(), TrustDomain::default());
        stranger.ensure_roots(now).unwrap();
        stranger.ensure_tenant(&tenant, now).unwrap();
        let (ours, theirs) = (authority.tenant_intermediate_file(&tenant), stranger.tenant_intermediate_file(&tenant));
        let both = [std::fs::read(&ours).unwrap(), std::fs::read(theirs).unwrap()].concat();
        std::fs::write(&ours, both).unwrap();
        assert_eq!(wrong(&home), ["fail certificate-chain"]);
    }

    #[test]
    fn credentials_whose_key_the_account_gave_up_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let home = Home::read(folder.path(), now);
        let operator = OperatorStore::open(home.layout.operator(), now.unix_timestamp()).unwrap();
        let expires = now.unix_timestamp() + 30 * 86_400;
        let user = UserRequest { account: "sys", role: Role::SystemOperator, name: "x", site: None, expires };
        let text = operator.issue_user(&user, now.unix_timestamp()).unwrap().text;
        write_secret(&home.layout.provisioning().join("x.creds"), text.as_bytes()).unwrap();
        assert_eq!(wrong(&home), Vec::<String>::new());
        let mut body = operator.system().unwrap().claims.nats;
        body.signing_keys.clear();
        operator.sign_body("sys", body, now.unix_timestamp()).unwrap();
        assert_eq!(wrong(&home), ["fail credentials-signer"]);
    }
}
