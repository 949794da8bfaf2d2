//! `bulkhead tenant user` and `bulkhead operator user`: people of a tenant, and people of the platform.

use std::path::{Path, PathBuf};

use bulkhead_bus::{Role, TenantSlug, UserName};
use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::{open, say, show_preview, taken_away};
use super::exit::Failure;
use super::show::{Row, print_rows};
use crate::certificates::ClientIdentity;
use crate::tenancy::{Issued, NewPerson, PersonRole, PlatformPerson, Standing, TenancyError};
use crate::up::OPS;

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Let a person in: writes a folder with profile, certificate and credentials.
    #[command(
        after_help = "Example:\n  bulkhead tenant user add acme-corp alice --role viewer --to alice\n\nOnce more for the same name issues anew and voids what was issued before."
    )]
    Add(UserAddArgs),
    /// The people of a tenant.
    #[command(after_help = "Example:\n  bulkhead tenant user list acme-corp --json")]
    List { tenant: TenantSlug },
    /// Put a person out, at once.
    #[command(
        after_help = "Example:\n  bulkhead tenant user revoke acme-corp alice\n\nIt is written down first. With the hub away it ends with 5: say it again, or `bulkhead push`, when that is back."
    )]
    Revoke {
        tenant: TenantSlug,
        user: UserName,
        /// Only say whose connections would close.
        #[arg(long)]
        dry_run: bool,
    },
}

/// People of the platform see every tenant.
#[derive(Debug, Subcommand)]
pub(super) enum PlatformUserCommand {
    /// Let a person of the platform in: writes a folder with profile, certificate and credentials.
    #[command(
        after_help = "Example:\n  bulkhead operator user add carol --to carol\n\nOnce more for the same name issues anew and voids what was issued before."
    )]
    Add {
        user: UserName,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// The people of the platform.
    #[command(after_help = "Example:\n  bulkhead operator user list --json")]
    List,
    /// Put a person out, at once.
    #[command(after_help = "Example:\n  bulkhead operator user revoke carol")]
    Revoke {
        user: UserName,
        /// Only say whose connections would close.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct UserAddArgs {
    tenant: TenantSlug,
    user: UserName,
    /// admin or viewer.
    #[arg(long, default_value = "viewer")]
    role: PersonRole,
    #[command(flatten)]
    issue: IssueArgs,
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// How long the certificate is good.
    #[arg(long, default_value_t = 90, value_parser = super::number::whole::<u32>(1..=90))]
    days: u32,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

impl IssueArgs {
    fn person(self, name: UserName) -> NewPerson {
        NewPerson { name, folder: self.to, days: self.days }
    }
}

#[derive(Serialize)]
struct PersonLine {
    tenant: String,
    user: String,
    role: &'static str,
    state: &'static str,
    /// Unix seconds.
    expires: i64,
    /// Of the certificate.
    serials: Vec<String>,
}

impl Row for PersonLine {
    const HEADER: &'static [&'static str] = &["TENANT", "USER", "ROLE", "STATE", "EXPIRES (UTC)", "CERTIFICATE"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.clone(),
            self.user.clone(),
            self.role.to_owned(),
            self.state.to_owned(),
            super::show::moment(self.expires * 1_000, now_ms),
            self.serials.join(", "),
        ]
    }
}

fn state(standing: Standing, issued: &Issued) -> &'static str {
    match standing {
        Standing::Active => issued.state(now_ms() / 1_000).as_str(),
        Standing::Revoked => "revoked",
    }
}

/// `known` is the role that the person has.
fn say_would_add(who: &str, role: &str, known: Option<&str>, is_json: bool) -> Result<(), Failure> {
    let text = match known {
        None => format!("{who} would be let in as {role}"),
        Some(known) if known == role => {
            format!("{who} would be issued anew as {role}, and disconnected where the present file is used")
        }
        Some(known) => format!("{who} would be issued anew as {role} instead of {known}, and disconnected"),
    };
    say(is_json, &text, &json!({"user": who, "would": text}))
}

pub(super) async fn run(home: &Path, command: UserCommand, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    match command {
        UserCommand::Add(UserAddArgs { tenant, user, role, issue }) => {
            let who = format!("{user} of {tenant}");
            if issue.dry_run {
                let record = tenancy.records.get(&tenant).map_err(TenancyError::Record)?;
                let identity = ClientIdentity::User { tenant, user: user.clone() };
                let known = record.people.get(&user).filter(|known| known.standing == Standing::Active);
                let known = known.map(|known| known.role.as_str());
                tenancy.check_folder(&identity, &issue.person(user))?;
                return say_would_add(&who, role.as_str(), known, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            let path = tenancy.add_person(&links, &tenant, &issue.person(user.clone()), role).await?;
            let text = format!("{who} is let in by {}", path.display());
            say(is_json, &text, &json!({"tenant": tenant, "user": user, "profile": path}))
        }
        UserCommand::List { tenant } => {
            let record = tenancy.records.get(&tenant).map_err(TenancyError::Record)?;
            let mut lines = Vec::new();
            for (name, person) in &record.people {
                lines.push(PersonLine {
                    tenant: tenant.to_string(),
                    user: name.to_string(),
                    role: person.role.as_str(),
                    state: state(person.standing, &person.issued),
                    expires: person.issued.certificates_expire,
                    serials: person.issued.serials.clone(),
                });
            }
            print_rows(&lines, is_json, now_ms())
        }
        UserCommand::Revoke { tenant, user, dry_run } => {
            if dry_run {
                let links = tenancy.links()?;
                return show_preview(&tenancy.preview_person(&links, &tenant, &user).await?, is_json);
            }
            let _lock = tenancy.lock()?;
            taken_away(tenancy.revoke_person(&tenancy.links()?, &tenant, &user)).await?;
            let text = format!("{user} of {tenant} is put out");
            say(is_json, &text, &json!({"tenant": tenant, "revoked": user}))
        }
    }
}

pub(super) async fn run_platform(home: &Path, command: PlatformUserCommand, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    match command {
        PlatformUserCommand::Add { user, issue } => {
            let who = format!("{user} of the platform");
            if issue.dry_run {
                let people = tenancy.platform_people()?.people;
                let known = people.get(&user).filter(|known| known.standing == Standing::Active);
                let role = Role::PlatformAdmin.name();
                let identity = ClientIdentity::PlatformUser { user: user.clone() };
                tenancy.check_folder(&identity, &issue.person(user))?;
                return say_would_add(&who, role, known.map(|_| role), is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            let path = tenancy.add_platform_person(&links, &issue.person(user.clone())).await?;
            let text = format!("{who} is let in by {}", path.display());
            say(is_json, &text, &json!({"user": user, "profile": path}))
        }
        PlatformUserCommand::List => {
            let line = |(name, person): (&UserName, &PlatformPerson)| PersonLine {
                tenant: OPS.to_owned(),
                user: name.to_string(),
                role: Role::PlatformAdmin.name(),
                state: state(person.standing, &person.issued),
                expires: person.issued.certificates_expire,
                serials: person.issued.serials.clone(),
            };
            let people = tenancy.platform_people()?.people;
            print_rows(&people.iter().map(line).collect::<Vec<_>>(), is_json, now_ms())
        }
        PlatformUserCommand::Revoke { user, dry_run } => {
            if dry_run {
                let links = tenancy.links()?;
                return show_preview(&tenancy.preview_platform_person(&links, &user).await?, is_json);
            }
            let _lock = tenancy.lock()?;
            taken_away(tenancy.revoke_platform_person(&tenancy.links()?, &user)).await?;
            say(is_json, &format!("{user} of the platform is put out"), &json!({"revoked": user}))
        }
    }
}
