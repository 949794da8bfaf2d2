//! `bulkhead secret`: values that checks name and nobody but the pollers that use them can read. They are sealed here, on this
//! machine, once for each poller.

use std::io::Read;
use std::path::{Path, PathBuf};

use bulkhead_bus::payload::{SealedFor, SealingKeyRow, SecretQuery, SecretRow, SetSecret};
use bulkhead_bus::{CheckName, DispatchVerb, TenantSubject};
use bulkhead_claims::seal_secret;
use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use super::Scope;
use super::desk::say;
use super::exit::Failure;
use super::query::Session;
use super::show::print_rows_or;
use crate::client::{ANSWER_LIMIT, ask};

const SECRET_BYTES_MOST: u64 = 8 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum SecretCommand {
    /// Keep a secret for checks, in place of what was there; read from a file or standard input, and never shown.
    #[command(
        after_help = "Examples:\n  bulkhead secret set api-token --tenant acme-corp --from token.txt\n  pass show api | bulkhead secret set api-token --tenant acme-corp\n\nIt is sealed for each poller that there is, on this machine: neither the bus nor the database can read it. A poller that comes\nlater cannot open it until it is set again; `bulkhead secret list` shows who can."
    )]
    Set(SetArgs),
    /// Which secrets there are, and which pollers can open them.
    #[command(after_help = "Example:\n  bulkhead secret list --tenant acme-corp")]
    List(Scope),
    /// Forget a secret. Checks that name it end in error.
    #[command(after_help = "Example:\n  bulkhead secret remove api-token --tenant acme-corp")]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Such as api-token.
    name: CheckName,
    #[command(flatten)]
    scope: Scope,
    /// The file that holds it [default: standard input]. One line end at its end is not part of it.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Such as api-token.
    name: CheckName,
    #[command(flatten)]
    scope: Scope,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

fn read_value(from: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    let shown = from.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    let mut value = Zeroizing::new(String::new());
    let read = match from {
        None => std::io::stdin().lock().take(SECRET_BYTES_MOST + 1).read_to_string(&mut value),
        Some(path) => {
            std::fs::File::open(path).and_then(|file| file.take(SECRET_BYTES_MOST + 1).read_to_string(&mut value))
        }
    };
    read.map_err(|error| Failure::invalid(&format!("read the secret from {shown}"), error))?;
    let length = value.trim_end_matches(['\r', '\n']).len();
    value.truncate(length);
    if value.is_empty() || value.len() as u64 > SECRET_BYTES_MOST {
        return Err(Failure::refused_change(format!(
            "the secret from {shown} is empty or longer than {SECRET_BYTES_MOST} bytes"
        )));
    }
    Ok(value)
}

async fn asked<T: DeserializeOwned>(
    session: &Session,
    verb: DispatchVerb,
    body: &impl Serialize,
) -> Result<Vec<T>, Failure> {
    let subject = TenantSubject::Dispatch { user: session.user.clone(), verb };
    Ok(ask(&session.bus, &subject, body, ANSWER_LIMIT).await?)
}

async fn set(home: &Path, args: SetArgs, is_json: bool) -> Result<(), Failure> {
    let SetArgs { name, scope, from, dry_run } = args;
    let value = read_value(from.as_deref())?;
    let session = Session::open(home, &scope).await?;
    let tenant = scope.tenant.as_ref().map(ToString::to_string);
    let keys: Vec<SealingKeyRow> =
        asked(&session, DispatchVerb::ListSealingKeys, &SecretQuery { tenant: tenant.clone() }).await?;
    if keys.is_empty() {
        return Err(Failure::refused_change(
            "no poller has said for which key to seal: start one, and say it again".to_owned(),
        ));
    }
    let pollers: Vec<String> = keys.iter().map(|row| format!("{}/{}", row.site, row.poller)).collect();
    if dry_run {
        let text = format!("secret {name} would be sealed for {}", pollers.join(", "));
        return say(is_json, &text, &json!({"secret": name, "pollers": pollers, "would": text}));
    }
    let mut copies = Vec::new();
    for SealingKeyRow { site, poller, sealing_key, .. } in keys {
        let sealed = seal_secret(name.as_str(), &value, &sealing_key).map_err(Failure::failed)?;
        copies.push(SealedFor { site, poller, sealing_key, sealed });
    }
    let rows: Vec<SecretRow> = asked(&session, DispatchVerb::SetSecret, &SetSecret { tenant, name, copies }).await?;
    print_rows_or("nothing is kept", &rows, is_json, now_ms())
}

pub(super) async fn run(home: &Path, command: SecretCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        SecretCommand::Set(args) => set(home, args, is_json).await,
        SecretCommand::List(scope) => {
            let session = Session::open(home, &scope).await?;
            let tenant = scope.tenant.as_ref().map(ToString::to_string);
            let rows: Vec<SecretRow> = asked(&session, DispatchVerb::ListSecrets, &SecretQuery { tenant }).await?;
            print_rows_or("there are no secrets", &rows, is_json, now_ms())
        }
        SecretCommand::Remove(RemoveArgs { name, scope, dry_run }) => {
            let text = format!("secret {name} {} forgotten", if dry_run { "would be" } else { "is" });
            if !dry_run {
                let session = Session::open(home, &scope).await?;
                let tenant = scope.tenant.as_ref().map(ToString::to_string);
                let gone = SetSecret { tenant, name: name.clone(), copies: vec![] };
                let _left: Vec<SecretRow> = asked(&session, DispatchVerb::SetSecret, &gone).await?;
            }
            say(is_json, &text, &json!({"secret": name, "text": text}))
        }
    }
}
