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
use crate::claims::{UserBody, decode};

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
        (None, _) if is_hub => Kind::Server,
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
            "replace this authority and issue everything below it anew; on a trial machine: `bulkhead up --fresh`"
                .to_owned()
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
    findings.push(key_finding(&shown, &certificate, &path.with_extension("key"), &restore));
    // Judged at a time when it was good: how long it is good is another look.
    let at = home.now.min(certificate.not_after - Duration::SECOND).max(certificate.not_before);
    findings.push(match trust::verify(kind, &chain, &roots_folder(home), at) {
        Ok(()) => CHAIN.ok(&shown, kind.root_name()),
        Err(why) => CHAIN.fail(&shown, why, restore.clone()),
    });
    if !matches!(kind, Kind::Root | Kind::Intermediate) {
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

fn key_finding(shown: &str, certificate: &Certificate, key_file: &Path, restore: &str) -> Finding {
    if !key_file.exists() {
        return KEY.fail(shown, "its key is gone", restore);
    }
    match trust::public_half(key_file) {
        Ok(public) if public == certificate.public_key => KEY.ok(shown, "its own"),
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
