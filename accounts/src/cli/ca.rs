//! Commands about the authorities of a deployment: what they are, what they issued, revoking, replacing.

use std::collections::BTreeSet;
use std::path::Path;

use bulkhead_bus::TenantSlug;
use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;

use super::desk::{counter, open};
use super::exit::Failure;
use super::show::{Row, age, print_rows, print_rows_or, write_lines};
use crate::certificates::{
    Authority, AuthorityName, AuthorityState, Change, IssuedRecord, Objections, Reason, Revocable, RevokedRecord,
    Rotation, RotationStep, TrustedCertificate,
};
use crate::provisioning_lock::ProvisioningLock;
use crate::tenancy::{LOCK_LIMIT, PlatformSettings, TenancyError};
use crate::up::Layout;

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Every authority with what is trusted of it and until when.
    #[command(after_help = "Example:\n  bulkhead ca list --json")]
    List,
    /// What an authority has issued, oldest first.
    #[command(after_help = "Examples:\n  bulkhead ca show tenant/acme-corp\n  bulkhead ca show server-root --json")]
    Show {
        /// client-root, server-root, route-root, platform or tenant/SLUG.
        name: AuthorityName,
    },
    /// Replace an authority: both are trusted until --finish.
    #[command(
        after_help = "Examples:\n  bulkhead ca rotate tenant/acme-corp --dry-run\n  bulkhead ca rotate tenant/acme-corp\n  bulkhead ca rotate tenant/acme-corp --finish\n\nAfter each step of a root reload every server: they read the files of whom they trust when they are reloaded. The gatekeepers are told\nwhom a tenant's, the platform's or the clients' authorities vouch for; exit code 5 when they could not be.\nWithout --force, --finish and --abandon are refused (exit code 7) while certificates would be cut off."
    )]
    Rotate(RotateArgs),
    /// Revoke a certificate, or all that a name has, and bring the lists up to date.
    #[command(
        after_help = "Examples:\n  bulkhead ca revoke p1.oslo.acme-corp.serviceradar --reason key-compromise\n  bulkhead ca revoke 5f0c2a9be1d34c778a90b1c2d3e4f506 --dry-run\n\nnats-server reads no lists: the gatekeepers are told, and close whoever is in with it. Exit code 5 when they could not be."
    )]
    Revoke(RevokeArgs),
    /// The lists of revoked certificates: where they are and what is on them.
    #[command(after_help = "Examples:\n  bulkhead ca crl\n  bulkhead ca crl --renew")]
    Crl {
        /// Make those anew that are missing, wrong or past half of their life.
        #[arg(long)]
        renew: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// client-root, server-root, route-root, platform or tenant/SLUG.
    name: AuthorityName,
    /// Stop trusting the old one.
    #[arg(long, conflicts_with = "abandon")]
    finish: bool,
    /// Go back to the old one.
    #[arg(long)]
    abandon: bool,
    /// Cut off certificates that rest on what goes.
    #[arg(long)]
    force: bool,
    /// Do not tell the gatekeepers: `bulkhead push` does it later.
    #[arg(long)]
    offline: bool,
    /// Show what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// A serial number in hexadecimal, a DNS name or a URI.
    what: Revocable,
    /// Why.
    #[arg(long, value_enum, default_value = "unspecified")]
    reason: Reason,
    /// Do not tell the gatekeepers: `bulkhead push` does it later.
    #[arg(long)]
    offline: bool,
    /// Show what would be revoked.
    #[arg(long)]
    dry_run: bool,
}

/// One trusted certificate of an authority.
#[derive(Serialize)]
struct AuthorityRow {
    name: AuthorityName,
    rotation: Option<&'static str>,
    #[serde(flatten)]
    trusted: TrustedCertificate,
}

fn days_left(until: OffsetDateTime, now_ms: i64) -> String {
    let left = until.unix_timestamp() * 1_000 - now_ms;
    if left <= 0 { "ended".to_owned() } else { age(now_ms - left, now_ms) }
}

impl Row for AuthorityRow {
    const HEADER: &'static [&'static str] = &["AUTHORITY", "STATE", "SIGNED BY", "UNTIL", "LEFT", "SERIAL", "KEY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let facts = &self.trusted.facts;
        let role = if self.trusted.signs { "signs" } else { "trusted" };
        vec![
            self.name.to_string(),
            self.rotation.map_or_else(|| role.to_owned(), |rotation| format!("{role}, {rotation}")),
            if facts.issuer == facts.subject { "itself".to_owned() } else { facts.issuer.clone() },
            facts.not_after.date().to_string(),
            days_left(facts.not_after, now_ms),
            facts.serial.clone(),
            facts.key_fingerprint[..12].to_owned(),
        ]
    }
}

/// One issued certificate and what became of it.
#[derive(Serialize)]
struct IssuedRow {
    #[serde(flatten)]
    issued: IssuedRecord,
    revoked: Option<Reason>,
}

impl Row for IssuedRow {
    const HEADER: &'static [&'static str] = &["IDENTITY", "STATE", "FROM", "UNTIL", "LEFT", "SERIAL", "ISSUER KEY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let issued = &self.issued;
        vec![
            issued.identity.clone(),
            if self.revoked.is_some() { "revoked".to_owned() } else { "good".to_owned() },
            issued.not_before.date().to_string(),
            issued.not_after.date().to_string(),
            days_left(issued.not_after, now_ms),
            issued.serial.clone(),
            issued.issuer_key[..12].to_owned(),
        ]
    }
}

/// One revoked certificate.
#[derive(Serialize)]
struct RevokedRow {
    authority: AuthorityName,
    #[serde(flatten)]
    revoked: RevokedRecord,
    is_dry_run: bool,
}

impl Row for RevokedRow {
    const HEADER: &'static [&'static str] = &["AUTHORITY", "IDENTITY", "SERIAL", "REASON", "REVOKED", "ENDS"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![
            self.authority.to_string(),
            self.revoked.identity.clone(),
            self.revoked.serial.clone(),
            serde_json::to_value(self.revoked.reason)
                .ok()
                .and_then(|it| it.as_str().map(str::to_owned))
                .unwrap_or_default(),
            if self.is_dry_run { "would be".to_owned() } else { self.revoked.at.date().to_string() },
            self.revoked.not_after.date().to_string(),
        ]
    }
}

/// One list of revoked certificates.
#[derive(Serialize)]
struct ListRow {
    authority: AuthorityName,
    file: String,
    revoked: usize,
    is_there: bool,
    is_renewed: bool,
}

impl Row for ListRow {
    const HEADER: &'static [&'static str] = &["AUTHORITY", "REVOKED", "STATE", "FILE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let state = match (self.is_renewed, self.is_there) {
            (true, _) => "renewed",
            (false, true) => "kept",
            (false, false) => "not made yet",
        };
        vec![self.authority.to_string(), self.revoked.to_string(), state.to_owned(), self.file.clone()]
    }
}

/// One change on disk.
#[derive(Serialize)]
struct ChangeRow {
    name: AuthorityName,
    step: RotationStep,
    change: Change,
    is_dry_run: bool,
}

impl Row for ChangeRow {
    const HEADER: &'static [&'static str] = &["AUTHORITY", "CHANGE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.name.to_string(), self.change.to_string()]
    }
}

struct Asked {
    authority: Authority,
    now: OffsetDateTime,
    is_json: bool,
}

impl Asked {
    fn now_ms(&self) -> i64 {
        i64::try_from(self.now.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
    }

    fn print<T: Row>(&self, rows: &[T]) -> Result<(), Failure> {
        print_rows(rows, self.is_json, self.now_ms())
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.is_json { Ok(()) } else { write_lines(&format!("{text}\n")) }
    }
}

pub(super) async fn run(home: &Path, command: &CaCommand, is_json: bool) -> Result<(), Failure> {
    let layout = Layout::new(home.to_owned());
    let domain = PlatformSettings::trust_domain(&layout).map_err(|error| Failure::invalid("platform", error))?;
    let asked =
        Asked { authority: Authority::new(layout.authority(), domain), now: OffsetDateTime::now_utc(), is_json };
    match command {
        CaCommand::List => list(&asked),
        CaCommand::Show { name } => show(&asked, name),
        CaCommand::Rotate(args) => rotate(home, &asked, args).await,
        CaCommand::Revoke(args) => revoke(home, &asked, args).await,
        CaCommand::Crl { renew } => lists(&asked, *renew),
    }
}

fn rows_of(state: AuthorityState) -> impl Iterator<Item = AuthorityRow> {
    let AuthorityState { name, rotation, trusted } = state;
    trusted.into_iter().map(move |trusted| AuthorityRow { name: name.clone(), rotation, trusted })
}

fn list(asked: &Asked) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for name in asked.authority.list_authorities()? {
        rows.extend(rows_of(asked.authority.authority_state(&name)?));
    }
    asked.print(&rows)
}

fn show(asked: &Asked, name: &AuthorityName) -> Result<(), Failure> {
    // Says so when there is no such authority.
    asked.authority.authority_state(name)?;
    let revoked = asked.authority.list_revoked(name)?;
    let row = |issued: IssuedRecord| IssuedRow {
        revoked: revoked.iter().find(|record| record.serial == issued.serial).map(|record| record.reason),
        issued,
    };
    let rows: Vec<_> = asked.authority.list_issued(name)?.into_iter().map(row).collect();
    asked.print(&rows)
}

async fn rotate(home: &Path, asked: &Asked, args: &RotateArgs) -> Result<(), Failure> {
    let step = match (args.finish, args.abandon) {
        (true, _) => RotationStep::Finish,
        (false, true) => RotationStep::Abandon,
        (false, false) => RotationStep::Prepare,
    };
    let objections = if args.force { Objections::Override } else { Objections::Heed };
    let planned = asked.authority.plan_rotation(&args.name, step, asked.now)?;
    let rotation = if args.dry_run {
        planned
    } else {
        if !planned.blocked_by.is_empty() && !args.force {
            print_blocked(asked, &planned)?;
        }
        asked.authority.rotate(&args.name, (step, objections), asked.now)?
    };
    if args.dry_run && !rotation.blocked_by.is_empty() {
        print_blocked(asked, &rotation)?;
    }
    let row = |change: &Change| ChangeRow {
        name: rotation.name.clone(),
        step,
        change: change.clone(),
        is_dry_run: args.dry_run,
    };
    asked.print(&rotation.changes.iter().map(row).collect::<Vec<_>>())?;
    if args.dry_run || rotation.changes.is_empty() {
        return Ok(());
    }
    asked.say(if is_read_by_servers(&args.name) {
        "Done. Reload every server, so that it reads whom to trust now."
    } else {
        "Done. No server reads it: who is issued something new shows it, and the gatekeepers are told whom to believe."
    })?;
    if args.offline { Ok(()) } else { tell(home, &[args.name.clone()].into(), asked.is_json).await }
}

/// Servers trust roots; what comes between is shown to them by whoever connects.
fn is_read_by_servers(authority: &AuthorityName) -> bool {
    match authority {
        AuthorityName::ClientRoot | AuthorityName::ServerRoot | AuthorityName::RouteRoot => true,
        AuthorityName::Platform | AuthorityName::Tenant(_) => false,
    }
}

/// Whom the step would cut off.
fn print_blocked(asked: &Asked, rotation: &Rotation) -> Result<(), Failure> {
    asked.say("These certificates would be trusted by nobody:")?;
    let row = |issued: &IssuedRecord| IssuedRow { issued: issued.clone(), revoked: None };
    asked.print(&rotation.blocked_by.iter().map(row).collect::<Vec<_>>())
}

async fn revoke(home: &Path, asked: &Asked, args: &RevokeArgs) -> Result<(), Failure> {
    let found = if args.dry_run {
        asked.authority.plan_revocation(&args.what, args.reason, asked.now)?
    } else {
        // Nobody enrols, or renews, by a key that is just being taken back.
        let _lock = ProvisioningLock::take(home, LOCK_LIMIT).map_err(TenancyError::Lock)?;
        asked.authority.revoke(&args.what, args.reason, asked.now)?
    };
    let row = |(authority, revoked)| RevokedRow { authority, revoked, is_dry_run: args.dry_run };
    let rows: Vec<RevokedRow> = found.into_iter().map(row).collect();
    print_rows_or("all of it was revoked before", &rows, asked.is_json, asked.now_ms())?;
    if args.dry_run || args.offline {
        return Ok(());
    }
    // Also what was revoked before, which nobody may have been told.
    tell(home, &asked.authority.issuers_of(&args.what)?, asked.is_json).await
}

/// Whether the gatekeepers decide about an account's members by what this authority has issued.
fn vouches_for(authority: &AuthorityName, account: &str) -> bool {
    match authority {
        AuthorityName::ClientRoot => true,
        AuthorityName::Platform => account.parse::<TenantSlug>().is_err(),
        AuthorityName::Tenant(slug) => slug.as_str() == account,
        AuthorityName::ServerRoot | AuthorityName::RouteRoot => false,
    }
}

/// Tells the gatekeepers whom these authorities vouch for now; done when nobody is in who is let in no more.
async fn tell(home: &Path, authorities: &BTreeSet<AuthorityName>, is_json: bool) -> Result<(), Failure> {
    let told = async {
        let tenancy = open(home)?;
        let operator = &tenancy.platform.operator;
        let is_meant = |name: &String| authorities.iter().any(|authority| vouches_for(authority, name));
        let names: Vec<String> = operator.account_names().into_iter().filter(is_meant).collect();
        if names.is_empty() {
            return Ok(());
        }
        let _lock = tenancy.lock()?;
        let links = tenancy.connect().await?;
        let progress = counter(is_json, names.len(), "accounts told to the gatekeepers");
        for (done, name) in names.iter().enumerate() {
            progress(done);
            tenancy.narrow(&links, name).await?;
        }
        Ok(())
    };
    told.await.map_err(|failure: Failure| {
        let why = failure.message();
        Failure::not_ready(format!(
            "written down here, and not all the gatekeepers were told: {why}; then `bulkhead push`"
        ))
    })
}

fn lists(asked: &Asked, renew: bool) -> Result<(), Failure> {
    let renewed = if renew { asked.authority.renew_lists(asked.now)? } else { vec![] };
    let mut rows = Vec::new();
    for authority in asked.authority.list_authorities()? {
        let file = asked.authority.list_file(&authority);
        rows.push(ListRow {
            revoked: asked.authority.list_revoked(&authority)?.len(),
            is_there: file.exists(),
            is_renewed: renewed.contains(&authority),
            file: file.display().to_string(),
            authority,
        });
    }
    asked.print(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::TrustDomain;
    use crate::cli::exit;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: CaCommand,
    }

    fn run_line(home: &Path, line: &str) -> Result<(), Failure> {
        let parsed = Line::try_parse_from(["ca"].into_iter().chain(line.split(' ')));
        let command = parsed.unwrap_or_else(|error| panic!("{line}: {error}")).command;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(home, &command, true))
    }

    fn code(result: Result<(), Failure>) -> u8 {
        result.map_or_else(|failure| failure.code(), |()| exit::DONE)
    }

    #[test]
    fn an_authority_is_replaced_from_the_command_line() {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::new(Layout::new(home.path().to_owned()).authority(), TrustDomain::default());
        let now = OffsetDateTime::now_utc();
        authority.ensure_roots(now).unwrap();
        let files = crate::certificates::CertificateFiles::named(home.path(), "core");
        let core = crate::certificates::ClientIdentity::Service { service: "core" };
        let issued = authority.issue_client(&core, &files, now).unwrap();
        for (line, expected) in [
            ("list", exit::DONE),
            ("show platform", exit::DONE),
            ("show tenant/nobody", exit::INVALID),
            ("crl", exit::DONE),
            ("crl --renew", exit::DONE),
            ("rotate platform --finish", exit::INVALID),
            ("rotate platform --dry-run", exit::DONE),
            ("rotate platform --offline", exit::DONE),
            ("rotate platform --finish --dry-run", exit::DONE),
            ("rotate platform --finish --offline", exit::REFUSED),
            ("revoke nobody.at.all", exit::INVALID),
            ("revoke core.platform.serviceradar --dry-run", exit::DONE),
            ("rotate platform --finish", exit::REFUSED),
            ("revoke core.platform.serviceradar --reason superseded --offline", exit::DONE),
            ("rotate platform --finish --offline", exit::DONE),
        ] {
            assert_eq!(code(run_line(home.path(), line)), expected, "{line}");
        }
        assert_eq!(authority.list_revoked(&AuthorityName::Platform).unwrap()[0].serial, issued.serial);
        for bad in ["rotate acme-corp", "rotate platform --finish --abandon", "revoke x --reason whim"] {
            assert!(Line::try_parse_from(["ca"].into_iter().chain(bad.split(' '))).is_err(), "{bad}");
        }
    }
}
