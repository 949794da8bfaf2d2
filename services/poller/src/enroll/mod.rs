//! `bulkhead-poller enroll`: makes the keys of a site's machine on that machine, and gets certificates for them with a token
//! that is good once (ADR 13). No private key leaves it.
//!
//! Whatever cuts it short, the same command goes on: the keys stay, and the desk knows them again.

mod ask;
mod folder;
mod keys;
mod place;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bulkhead_identity::{ENROL_PATH, Enrolee, EnrolmentClaims, TokenError};
use bulkhead_runtime::Chain;
use clap::{ArgGroup, Parser};
use serde_json::json;
use time::OffsetDateTime;

pub(crate) use ask::{AskError, DeskClient};
pub(crate) use folder::{FolderError, PUBLIC, SiteFolder, put_whole};
use keys::KeysError;
use place::PlaceError;
pub(crate) use place::check_certificate;

/// The word that begins it.
const COMMAND: &str = "enroll";
const TOKEN_BYTES_MOST: u64 = 16 * 1024;

const HELP: &str = "Examples:\n  bulkhead-poller enroll --token-file p1.token\n  bulkhead-poller enroll --to site --proxy http://proxy.example.com:3128 eyJ0eXAi…\n\nExit codes:\n  0  enrolled\n  1  failed\n  4  invalid input\n  6  the platform cannot be reached: say it again\n  7  refused; the text says why";

/// Make this machine's keys and get its certificates.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-poller enroll", bin_name = "bulkhead-poller enroll", after_help = HELP)]
#[command(group(ArgGroup::new("given").required(true).args(["token", "token_file"])))]
struct Args {
    /// What `bulkhead poller add` has printed. On a command line others of this machine see it: --token-file hides it.
    token: Option<String>,
    /// Read the token from this file; - is the standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The site's folder. Another poller of the same site may be there already [default: /etc/bulkhead/<tenant>/<site>].
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Make new keys even where there are some. What the old batch key has signed and nobody has stored yet is refused.
    #[arg(long)]
    new_keys: bool,
    /// Go through this proxy, such as http://proxy.example.com:3128 [default: HTTPS_PROXY of the environment].
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Why this machine is not enrolled.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error("token")]
    Token(#[source] TokenError),
    #[error("read the token from {path}")]
    TokenFile { path: String, source: std::io::Error },
    #[error("folder of the site")]
    Folder(#[source] FolderError),
    #[error("keys")]
    Keys(#[source] KeysError),
    #[error("ask for certificates")]
    Ask(#[source] AskError),
    #[error("what was answered")]
    Place(#[source] PlaceError),
    #[error("start")]
    Start(#[source] std::io::Error),
}

impl EnrollError {
    /// As those of `bulkhead`.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Token(_) | Self::TokenFile { .. } => 4,
            Self::Folder(error) if error.is_invalid() => 4,
            Self::Ask(AskError::Proxy { .. }) => 4,
            Self::Ask(AskError::Away { .. }) => 6,
            Self::Ask(AskError::Refused { .. } | AskError::Untrusted { .. }) => 7,
            Self::Folder(_) | Self::Keys(_) | Self::Ask(_) | Self::Place(_) | Self::Start(_) => 1,
        }
    }
}

/// Runs the command when the arguments are for it.
#[must_use]
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    if arguments.next().is_none_or(|first| first != COMMAND) {
        return None;
    }
    let all: Vec<OsString> = std::iter::once(program).chain(arguments).collect();
    let args = match Args::try_parse_from(all) {
        Ok(args) => args,
        Err(error) => {
            // Nobody may be listening; help is no error.
            let _ = error.print();
            return Some(if error.use_stderr() { ExitCode::from(4) } else { ExitCode::SUCCESS });
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(EnrollError::Start);
    Some(match runtime.and_then(|runtime| runtime.block_on(enroll(&args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bulkhead-poller: {}", Chain(&error));
            ExitCode::from(error.exit_code())
        }
    })
}

fn read_token(args: &Args) -> Result<String, EnrollError> {
    let Some(path) = &args.token_file else { return Ok(args.token.clone().unwrap_or_default().trim().to_owned()) };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(TOKEN_BYTES_MOST).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(TOKEN_BYTES_MOST).read_to_string(&mut text))
    };
    read.map_err(|source| EnrollError::TokenFile { path: path.display().to_string(), source })?;
    Ok(text.trim().to_owned())
}

fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn enroll(args: &Args) -> Result<(), EnrollError> {
    let token = read_token(args)?;
    let claims = EnrolmentClaims::read(&token).map_err(EnrollError::Token)?;
    let enrolee = claims.enrolee().map_err(EnrollError::Token)?;
    let domain = claims.domain().map_err(EnrollError::Token)?;
    let to = args.to.clone().unwrap_or_else(|| {
        ["/etc/bulkhead", enrolee.tenant.as_str(), enrolee.site.as_str()].iter().collect::<PathBuf>()
    });
    let root = claims.root_certificate().map_err(EnrollError::Token)?;
    let desk = DeskClient::new(&claims.urls, vec![root], args.proxy.as_deref()).map_err(EnrollError::Ask)?;
    // Nothing is made before what was said is known to be good.
    let folder = folder::open(&to, &enrolee).map_err(EnrollError::Folder)?;
    let keys = keys::DeviceKeys::ensure(&folder, &enrolee, &domain, args.new_keys).map_err(EnrollError::Keys)?;
    let request = keys.request(&token, &enrolee, &domain, folder.pollers_beside()).map_err(EnrollError::Keys)?;
    if !args.json {
        tell(&format!("asking {} for certificates of {enrolee}", claims.urls.join(", ")));
    }
    let answer = desk.post(ENROL_PATH, &request, &tell).await.map_err(EnrollError::Ask)?;
    place::place(&folder, &answer, &enrolee, &keys).map_err(EnrollError::Place)?;
    say(&folder.path, &enrolee, answer.ends_at, args.json);
    Ok(())
}

fn say(folder: &Path, enrolee: &Enrolee, ends_at: i64, is_json: bool) {
    let ends =
        OffsetDateTime::from_unix_timestamp(ends_at).map_or_else(|_| ends_at.to_string(), |at| at.date().to_string());
    let line = if is_json {
        json!({"enrolled": enrolee.to_string(), "folder": folder, "ends_at": ends_at}).to_string()
    } else {
        format!(
            "poller {enrolee} is enrolled in {folder}; its certificates end on {ends}\n{folder}/README.md says how leaf and \
             pollers are started; where they run already, start them again",
            folder = folder.display()
        )
    };
    let _ = writeln!(std::io::stdout(), "{line}");
}
