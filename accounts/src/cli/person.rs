//! `bulkhead tenant user`: people of a tenant.

use std::path::{Path, PathBuf};

use bulkhead_bus::{TenantSlug, UserName};
use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::{open, say};
use super::exit::Failure;
use super::show::{Row, print_rows};
use crate::tenancy::{NewPerson, PersonRole, Standing, TenancyError};

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
    #[command(after_help = "Example:\n  bulkhead tenant user revoke acme-corp alice")]
    Revoke {
        tenant: TenantSlug,
        user: UserName,
        /// Only say whether there is such a person.
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
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// How long the credentials are good.
    #[arg(long, default_value_t = 90, value_parser = super::number::whole::<u32>(1..=3_660))]
    days: u32,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct PersonLine {
    tenant: String,
    user: String,
    role: &'static str,
    state: &'static str,
    credentials_expire: i64,
    user_key: String,
}

impl Row for PersonLine {
    const HEADER: &'static [&'static str] = &["TENANT", "USER", "ROLE", "STATE", "EXPIRES (UTC)", "KEY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.clone(),
            self.user.clone(),
            self.role.to_owned(),
            self.state.to_owned(),
            super::show::moment(self.credentials_expire * 1_000, now_ms),
            self.user_key.clone(),
        ]
    }
}

pub(super) async fn run(home: &Path, command: UserCommand, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    match command {
        UserCommand::Add(args) => {
            if args.dry_run {
                let record = tenancy.records.get(&args.tenant).map_err(TenancyError::Record)?;
                let verb = if record.people.contains_key(&args.user) { "be issued anew" } else { "be let in" };
                let text = format!("{} of {} would {verb} as {}", args.user, args.tenant, args.role.as_str());
                return say(is_json, &text, &json!({"user": args.user, "would": text}));
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            let person = NewPerson { name: args.user.clone(), folder: args.to, days: args.days };
            let path = tenancy.add_person(&links, &args.tenant, &person, args.role).await?;
            let text = format!("{} of {} is let in by {}", args.user, args.tenant, path.display());
            say(is_json, &text, &json!({"tenant": args.tenant, "user": args.user, "profile": path}))
        }
        UserCommand::List { tenant } => {
            let record = tenancy.records.get(&tenant).map_err(TenancyError::Record)?;
            let line = |(name, person): (&UserName, &crate::tenancy::PersonRecord)| PersonLine {
                tenant: tenant.to_string(),
                user: name.to_string(),
                role: person.role.as_str(),
                state: if person.standing == Standing::Active { "active" } else { "revoked" },
                credentials_expire: person.issued.credentials_expire,
                user_key: person.issued.user_key.clone(),
            };
            print_rows(&record.people.iter().map(line).collect::<Vec<_>>(), is_json, now_ms())
        }
        UserCommand::Revoke { tenant, user, dry_run } => {
            let record = tenancy.records.get(&tenant).map_err(TenancyError::Record)?;
            if dry_run {
                let is_there = record.people.contains_key(&user);
                let text = if is_there { "would be put out" } else { "is not there" };
                return say(
                    is_json,
                    &format!("{user} of {tenant} {text}"),
                    &json!({"user": user, "is_there": is_there}),
                );
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            tenancy.revoke_person(&links, &tenant, &user).await?;
            say(is_json, &format!("{user} of {tenant} is put out"), &json!({"tenant": tenant, "revoked": user}))
        }
    }
}
