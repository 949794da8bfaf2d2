//! `bulkhead poller`: tokens with which pollers enrol, and the bundles of those that do not.

use std::io::Write;
use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde_json::json;
use tempfile::NamedTempFile;

use super::desk::{note, open, say, show_preview, taken_away};
use super::exit::Failure;
use super::member::{self, EventsArgs, HoldArgs, MemberFilter, SelectArgs, member_of, state_words};
use super::past::{PollerHistoryArgs, show_poller_history};
use super::show::moment;
use super::site::would;
use super::{Scope, whole};
use crate::certificates::AuthorityName;
use crate::tenancy::{
    BundleOrder, GivenToken, PollerPath, SiteOrder, Standing, Tenancy, TenancyError, WrittenBundle, host_and_port,
};
use crate::up::Target;

#[derive(Debug, Subcommand)]
pub(super) enum PollerCommand {
    /// Add a poller: print a token with which its machine enrols, or with --to write the bundle of its site.
    #[command(
        after_help = "Examples:\n  bulkhead poller add acme-corp/oslo/p1\n  bulkhead poller add acme-corp/oslo/p1 --valid-hours 2 --token-file p1.token\n  bulkhead poller add acme-corp/oslo/p2 --to bundles --target https://example.com/\n\nWith the token, bulkhead-poller enroll makes the keys on the machine itself; it is good once, and until it ends. A bundle\nholds the keys, and is carried there. Once more for the same poller gives a new token or writes the bundle anew."
    )]
    Add(AddArgs),
    /// Pollers with site and when a batch of theirs was last stored, as core knows it.
    #[command(after_help = "Example:\n  bulkhead poller list --tenant acme-corp")]
    List(Scope),
    /// Who is there, in which state since when, with how many checks of which generation; fwd is a site's leaf link.
    #[command(
        after_help = "Examples:\n  bulkhead poller status --tenant acme-corp\n  bulkhead poller status --state lost --state never\n  bulkhead poller status --tenant acme-corp --site oslo --name fwd --json\n\nStates: joining, ready, degraded, draining, quarantined; gone (it said so), lost (it stopped reporting), never (it has not\nreported yet), unknown (the registry cannot tell now)."
    )]
    Status(MemberFilter),
    /// Some of the pollers that are ready, as services choose them.
    #[command(
        after_help = "Examples:\n  bulkhead poller select --tenant acme-corp --label zone=dmz --can http\n  bulkhead poller select --tenant acme-corp --pick rendezvous --key web --count 2\n  bulkhead poller select --tenant acme-corp --pick spread --key site --count 3"
    )]
    Select(SelectArgs),
    /// Show who is there, and every change, until Ctrl-C.
    #[command(after_help = "Example:\n  bulkhead poller watch --tenant acme-corp --json")]
    Watch(MemberFilter),
    /// What became of pollers and leaf links: who joined, ended, was lost, fenced or held.
    #[command(after_help = "Example:\n  bulkhead poller events --tenant acme-corp --hours 2")]
    Events(EventsArgs),
    /// Give a poller no checks until it is released: others of its site take over.
    #[command(after_help = "Example:\n  bulkhead poller hold acme-corp/oslo/p1 --reason \"disk is being replaced\"")]
    Hold(HoldArgs),
    /// Give a poller checks again.
    #[command(after_help = "Example:\n  bulkhead poller release acme-corp/oslo/p1")]
    Release(HoldArgs),
    /// One poller: its key, its certificates and when they expire.
    #[command(after_help = "Example:\n  bulkhead poller show acme-corp/oslo/p1 --json")]
    Show { poller: PollerPath },
    /// What a poller delivered, by time: results, what it missed, and how late they came.
    #[command(
        after_help = "Examples:\n  bulkhead poller history acme-corp/oslo/p1\n  bulkhead poller history acme-corp/oslo/p1 --hours 2 --bucket 1m --json\n\nTimes are UTC, and of slots. A delay is from the beginning of a slot to when its result was stored."
    )]
    History(PollerHistoryArgs),
    /// Give a poller a new batch key, and write its site's bundle anew. What the old key has signed is refused.
    #[command(after_help = "Example:\n  bulkhead poller rotate acme-corp/oslo/p1 --to bundles")]
    Rotate(BundleArgs),
    /// Refuse what a poller signs, within a second, and revoke its certificates.
    #[command(after_help = "Example:\n  bulkhead poller revoke acme-corp/oslo/p1")]
    Revoke(PollerArgs),
    /// Take a poller off the lists; what it has measured stays.
    #[command(after_help = "Example:\n  bulkhead poller remove acme-corp/oslo/p1")]
    Remove(PollerArgs),
}

/// How the site is set up.
#[derive(Debug, Args)]
struct SetUp {
    /// Watch this as well: tcp://host:port, http(s)://…, icmp://host, dns://name. May be repeated [default: as before].
    #[arg(long = "target", value_name = "URL")]
    targets: Vec<Target>,
    /// Watch nothing but the machine and its leaf from now on.
    #[arg(long, conflicts_with = "targets")]
    no_target: bool,
    /// Where the leaf listens on the site's loopback interface [default: as before; 4222].
    #[arg(long, value_name = "PORT", value_parser = whole::<u16>(1..=65_535))]
    leaf_port: Option<u16>,
    /// Where the site's first poller is asked about its health, the others behind it [default: as before; 9101].
    #[arg(long, value_name = "PORT", value_parser = whole::<u16>(1..=65_000))]
    health_port: Option<u16>,
    /// The proxy between the site's leaf and the hub, such as http://proxy.example.com:3128 [default: as before; none].
    #[arg(long, value_name = "URL", value_parser = proxy_url)]
    proxy: Option<String>,
    /// Reach the hub without a proxy from now on.
    #[arg(long, conflicts_with = "proxy")]
    no_proxy: bool,
}

/// `http://host:port` or `https://host:port`: nothing that could end a string of a configuration, and no password.
fn proxy_url(text: &str) -> Result<String, String> {
    let is_proxy = ["http://", "https://"].iter().any(|scheme| {
        text.strip_prefix(scheme).is_some_and(|address| host_and_port(&format!("tls://{address}")).is_some())
    });
    let shown: String = text.chars().take(60).collect();
    if is_proxy { Ok(text.to_owned()) } else { Err(format!("{shown:?} is no proxy: write http://host:port")) }
}

impl SetUp {
    fn order(&self) -> SiteOrder {
        let targets = if self.no_target || !self.targets.is_empty() { Some(self.targets.clone()) } else { None };
        let proxy = if self.no_proxy { Some(None) } else { self.proxy.clone().map(Some) };
        SiteOrder { targets, leaf_port: self.leaf_port, health_port: self.health_port, proxy }
    }
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// Write the site's bundle into this folder instead of giving out a token.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["valid_hours", "token_file"])]
    to: Option<PathBuf>,
    /// How long the token is good.
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = whole::<i64>(1..=720))]
    valid_hours: i64,
    /// Write the token into this file, readable by its owner only, instead of printing it.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    set_up: SetUp,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// The folder that gets the bundle's folder and archive.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    set_up: SetUp,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct PollerArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

fn would_change(tenancy: &Tenancy, path: &PollerPath, text: String, is_json: bool) -> Result<(), Failure> {
    let record = tenancy.records.get(&path.tenant).map_err(TenancyError::Record)?;
    tenancy.poller(&record, path)?;
    say(is_json, &text, &json!({"poller": path.to_string(), "would": text}))
}

/// Most pollers connect to their leaf; one that is at the hub itself is closed.
async fn would_take_away(tenancy: &Tenancy, path: &PollerPath, text: String, is_json: bool) -> Result<(), Failure> {
    let record = tenancy.records.get(&path.tenant).map_err(TenancyError::Record)?;
    let token = tenancy.open_token(path)?;
    if token.is_some() && tenancy.poller(&record, path).is_err() {
        let text = format!("the token by which poller {path} may enrol would be withdrawn");
        return say(is_json, &text, &json!({"poller": path.to_string(), "would": text}));
    }
    tenancy.poller(&record, path)?;
    let preview = tenancy.preview_poller(&tenancy.links()?, path).await?;
    if is_json {
        return say(true, "", &json!({"poller": path.to_string(), "would": text, "preview": preview}));
    }
    say(false, &text, &())?;
    show_preview(&preview, false)
}

fn written(bundle: &WrittenBundle, what: &str, is_json: bool) -> Result<(), Failure> {
    let manifest = &bundle.manifest;
    let text = format!(
        "{what}; the bundle of {}/{} is {} (and unpacked in {})\nSHA-256 {}\nit has to be renewed before {}",
        manifest.tenant,
        manifest.site,
        bundle.archive.display(),
        bundle.folder.display(),
        bundle.sha256,
        manifest.ends
    );
    let value = json!({
        "folder": bundle.folder, "archive": bundle.archive, "sha256": bundle.sha256, "manifest": manifest,
    });
    say(is_json, &text, &value)
}

async fn add(home: &Path, args: &AddArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let path = &args.poller;
    if args.dry_run {
        let record = match &args.to {
            None => tenancy.check_invitation(path)?,
            Some(_) => tenancy.check_bundle(path)?,
        };
        let is_there = tenancy.poller(&record, path).is_ok();
        let text = match (&args.to, is_there) {
            (None, true) => format!("poller {path} is there, and would get a token to enrol anew"),
            (None, false) => format!("poller {path} would get a token to enrol"),
            (Some(_), true) => format!("poller {path} is there, and its site's bundle would be written anew"),
            (Some(_), false) => format!("poller {path} would be added, and its site's bundle written"),
        };
        return would(&tenancy, &path.tenant, text, is_json);
    }
    let _lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    let Some(to) = &args.to else {
        // Before the token that the poller has is void: where the new one cannot be put it would be lost.
        let place = args.token_file.as_deref().map(TokenPlace::reserve).transpose()?;
        let life_s = args.valid_hours * 3_600;
        let given = tenancy.invite_poller(&links, path, &args.set_up.order(), life_s).await?;
        return show_token(&given, path, place, is_json);
    };
    let order = BundleOrder { to: to.clone(), site: args.set_up.order() };
    let bundle = tenancy.add_poller(&links, path, &order).await?;
    written(&bundle, &format!("poller {path} is there"), is_json)
}

/// Where a token is put that is not to be shown.
struct TokenPlace {
    file: PathBuf,
    /// Beside it, readable by its owner only.
    written: NamedTempFile,
}

impl TokenPlace {
    fn reserve(file: &Path) -> Result<Self, Failure> {
        let folder = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            Some(_) | None => Path::new("."),
        };
        let refused = |why: String| {
            let problem = format!("--token-file {}: {why}; nothing was given out", file.display());
            Failure::refused_change(problem)
        };
        if file.is_dir() {
            return Err(refused("it is a folder".to_owned()));
        }
        let written = NamedTempFile::new_in(folder).map_err(|error| refused(error.to_string()))?;
        Ok(Self { file: file.to_owned(), written })
    }

    fn put(mut self, token: &str) -> std::io::Result<PathBuf> {
        writeln!(self.written, "{token}")?;
        self.written.as_file().sync_all()?;
        self.written.persist(&self.file)?;
        Ok(self.file)
    }
}

/// The one secret that is shown: it is made to be handed on, once.
fn show_token(given: &GivenToken, path: &PollerPath, place: Option<TokenPlace>, is_json: bool) -> Result<(), Failure> {
    let (record, token) = (&given.record, given.token.as_str());
    let ends = moment(record.expires_at * 1_000, now_ms());
    let folder = format!("/etc/bulkhead/{}/{}", path.tenant, path.site);
    let mut value = json!({"poller": record.poller, "id": record.id, "expires_at": record.expires_at});
    let text = match place {
        Some(place) => {
            let file = place.put(token).map_err(Failure::failed)?;
            value["token_file"] = json!(file);
            let file = file.display();
            format!(
                "poller {path} may enrol once, until {ends} UTC; the token is in {file}. On its machine:\n\n  \
                 bulkhead-poller enroll --to {folder} --token-file {file}"
            )
        }
        None => {
            value["token"] = json!(token);
            format!(
                "poller {path} may enrol once, until {ends} UTC. On its machine:\n\n  bulkhead-poller enroll --to {folder} \
                 {token}"
            )
        }
    };
    say(is_json, &text, &value)
}

pub(super) async fn run_poller(home: &Path, command: PollerCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        PollerCommand::List(scope) => super::query::list_pollers(home, &scope, is_json).await,
        PollerCommand::History(args) => show_poller_history(home, args, is_json).await,
        PollerCommand::Status(filter) => member::show_members(home, &filter, is_json).await,
        PollerCommand::Select(args) => member::select(home, args, is_json).await,
        PollerCommand::Watch(filter) => member::watch(home, &filter, is_json).await,
        PollerCommand::Events(args) => member::show_events(home, &args, is_json).await,
        PollerCommand::Hold(args) => member::hold(home, args, is_json).await,
        PollerCommand::Release(args) => member::release(home, args, is_json).await,
        PollerCommand::Show { poller } => show(home, &poller, is_json).await,
        PollerCommand::Add(args) => add(home, &args, is_json).await,
        PollerCommand::Rotate(args) => {
            let tenancy = open(home)?;
            tenancy.check_bundle(&args.poller)?;
            if args.dry_run {
                let text =
                    format!("poller {} would get a new key; what the old one has signed is refused", args.poller);
                return would_change(&tenancy, &args.poller, text, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            let order = BundleOrder { to: args.to, site: args.set_up.order() };
            let bundle = tenancy.rotate_poller(&links, &args.poller, &order).await?;
            if tenancy.runs_here(&args.poller) {
                note("`bulkhead up` runs this poller: what it measures is refused until `up` is started again");
            }
            written(&bundle, &format!("poller {} has a new key", args.poller), is_json)
        }
        PollerCommand::Revoke(args) => {
            let tenancy = open(home)?;
            if args.dry_run {
                let text = format!("what poller {} signs would be refused", args.poller);
                return would_take_away(&tenancy, &args.poller, text, is_json).await;
            }
            let _lock = tenancy.lock()?;
            taken_away(tenancy.revoke_poller(&tenancy.links()?, &args.poller)).await?;
            let text = format!(
                "what poller {} signs is refused; write its site a bundle without it, or enrol another one there",
                args.poller
            );
            say(is_json, &text, &json!({"revoked": args.poller.to_string()}))
        }
        PollerCommand::Remove(args) => {
            let tenancy = open(home)?;
            if args.dry_run {
                let text = format!("poller {} would be removed", args.poller);
                return would_take_away(&tenancy, &args.poller, text, is_json).await;
            }
            let _lock = tenancy.lock()?;
            taken_away(tenancy.remove_poller(&tenancy.links()?, &args.poller)).await?;
            say(is_json, &format!("poller {} is removed", args.poller), &json!({"removed": args.poller.to_string()}))
        }
    }
}

async fn show(home: &Path, path: &PollerPath, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let record = tenancy.records.get(&path.tenant).map_err(TenancyError::Record)?;
    if let Some(token) = tenancy.open_token(path)? {
        let ends = moment(token.expires_at * 1_000, now_ms());
        if tenancy.poller(&record, path).is_err() {
            let text =
                format!("poller        {path}\nstate         has not enrolled yet; its token ends at {ends} UTC");
            return say(is_json, &text, &json!({"poller": path.to_string(), "token": token}));
        }
        note(&format!("a token to enrol anew is open until {ends} UTC"));
    }
    let poller = tenancy.poller(&record, path)?;
    let issuer = AuthorityName::Tenant(path.tenant.clone());
    let revoked = tenancy.platform.authority.list_revoked(&issuer).map_err(TenancyError::Certificate)?;
    let is_revoked = |serial: &&String| revoked.iter().any(|one| one.serial == **serial);
    let revoked: Vec<&String> = poller.issued.serials.iter().filter(is_revoked).collect();
    let shown =
        |serial: &String| if revoked.contains(&serial) { format!("{serial} (revoked)") } else { serial.clone() };
    let serials: Vec<String> = poller.issued.serials.iter().map(shown).collect();
    let state = if poller.standing == Standing::Active { "active" } else { "revoked" };
    // The rest is known here, whether the hub can be reached or not.
    let member = member_of(home, path).await;
    let lease = match &member {
        Ok(Some(row)) => {
            format!("{}, {} checks, generation {} applied", state_words(row), row.load.checks, row.applied_generation)
        }
        Ok(None) => "not on the registry's list".to_owned(),
        Err(failure) => format!("not known: {}", failure.message()),
    };
    let text = format!(
        "poller        {path}\nstate         {state}\nlease         {lease}\nkeys          {}\nbatch key     {}\ncertificates  {}\nexpires       {}",
        if poller.is_enrolled { "made by its machine" } else { "made here" },
        poller.batch_key,
        if serials.is_empty() { "by `bulkhead up`".to_owned() } else { serials.join(", ") },
        match poller.issued.certificates_expire {
            0 => "-".to_owned(),
            end => moment(end * 1_000, now_ms()),
        },
    );
    say(
        is_json,
        &text,
        &json!({
            "poller": path.to_string(), "record": poller, "revoked": revoked, "member": member.ok().flatten(),
        }),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::exit;

    #[test]
    fn where_a_token_cannot_be_put_is_known_before_one_is_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        for bad in [missing.join("p1.token"), folder.path().to_owned()] {
            let refused = TokenPlace::reserve(&bad).err().expect("no place");
            assert_eq!(refused.code(), exit::INVALID, "{}", refused.message());
        }
        assert!(!missing.exists(), "a folder was made");
        let file = folder.path().join("p1.token");
        std::fs::write(&file, "the one before").unwrap();
        let place = TokenPlace::reserve(&file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "the one before");
        place.put("the new one").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "the new one\n");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
