//! `bulkhead operator init`: a platform whose servers run elsewhere, from nothing.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::desk::say;
use super::exit::Failure;
use crate::certificates::TrustDomain;
use crate::hub_size::HubSize;
use crate::tenancy::{PlatformSettings, Tenancy};
use crate::up::{Layout, remember_size};

pub(super) const HELP: &str = "Examples:\n  bulkhead operator init --hub-url tls://hub.example.com:4222 --leaf-url tls://hub.example.com:7422\n  bulkhead operator init --servers 3 --hub-url tls://a.example.com:4222 --hub-url tls://b.example.com:4222 --hub-url tls://c.example.com:4222 --leaf-url tls://sites.example.com:7422 --database-url-file /etc/bulkhead/provisioning.url\n\nThen:\n  1. bulkhead server-config --to hub-files, and start nats-server with each folder on its machine\n  2. bulkhead gatekeeper-config --to gatekeeper-files, and start bulkhead-gatekeeper with each, on machines of their own\n  3. bulkhead push\n  4. bulkhead operator user add NAME --to NAME, bulkhead tenant add SLUG, bulkhead site add SLUG/SITE\n\n`bulkhead up` does all this for one machine.";

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Where clients reach a server of the hub: once for each server, or one name for all.
    #[arg(long = "hub-url", value_name = "URL", required = true)]
    hub_urls: Vec<String>,
    /// Where sites reach it, likewise.
    #[arg(long = "leaf-url", value_name = "URL", required = true)]
    leaf_urls: Vec<String>,
    /// Where devices enrol, as `bulkhead enrolment-desk` is reached: https://host:port [default: nowhere; sites get bundles].
    #[arg(long = "enrolment-url", value_name = "URL")]
    enrolment_urls: Vec<String>,
    /// How many servers the hub has [default: as many as there are --hub-url].
    #[arg(long, value_name = "1|3")]
    servers: Option<HubSize>,
    /// The end of every name in certificates. It stays for the platform's life.
    #[arg(long, value_name = "DOMAIN", default_value_t)]
    trust_domain: TrustDomain,
    /// A file with the database's address for provisioning, mode 0600 [default: no database; no rows are written].
    #[arg(long, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
    /// Only say whether it could be made.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Made {
    operator: String,
    signing_keys: Vec<String>,
    accounts: Vec<String>,
    home: PathBuf,
    hub_servers: usize,
}

fn settings(args: InitArgs) -> Result<PlatformSettings, Failure> {
    let invalid = |problem: String| Failure::invalid("operator init", std::io::Error::other(problem));
    let hub_servers = match args.servers {
        Some(servers) => servers,
        None => args.hub_urls.len().to_string().parse().map_err(|error| Failure::invalid("--hub-url", error))?,
    };
    for (name, urls) in [("--hub-url", &args.hub_urls), ("--leaf-url", &args.leaf_urls)] {
        if urls.len() != 1 && urls.len() != hub_servers.servers() {
            let rule = "write it once for each server, or once for all";
            return Err(invalid(format!("{name} is there {} times and the hub has {hub_servers}: {rule}", urls.len())));
        }
    }
    let database_url_file = match args.database_url_file {
        Some(path) => Some(std::path::absolute(path).map_err(|error| Failure::invalid("--database-url-file", error))?),
        None => None,
    };
    let settings = PlatformSettings {
        trust_domain: args.trust_domain.to_string(),
        hub_servers,
        hub_urls: args.hub_urls,
        leaf_urls: args.leaf_urls,
        enrolment_urls: args.enrolment_urls,
        database_url_file,
    };
    settings.check().map_err(invalid)?;
    Ok(settings)
}

pub(super) fn run(home: &Path, args: InitArgs, is_json: bool) -> Result<(), Failure> {
    let layout = Layout::new(home.to_owned());
    if layout.platform_file().exists() {
        return Err(Failure::refused_change(format!(
            "there is a platform in {} already: `bulkhead operator show` shows it, {} says where its servers are",
            home.display(),
            layout.platform_file().display()
        )));
    }
    let is_dry = args.dry_run;
    let settings = settings(args)?;
    if is_dry {
        let text = format!("a platform with a hub of {} would be made in {}", settings.hub_servers, home.display());
        return say(is_json, &text, &settings);
    }
    let hub_servers = settings.hub_servers;
    let tenancy = Tenancy::found(layout, settings, time::OffsetDateTime::now_utc())?;
    remember_size(&tenancy.platform.layout, hub_servers)?;
    tenancy.render_all()?;
    let operator = &tenancy.platform.operator;
    let made = Made {
        operator: operator.name().to_owned(),
        signing_keys: operator.claims().nats.signing_keys.clone(),
        accounts: operator.account_names(),
        home: home.to_owned(),
        hub_servers: hub_servers.servers(),
    };
    let text = format!(
        "operator {} with {} signing keys and the accounts {} are made in {}\nnext: bulkhead server-config --to DIR and \
         bulkhead gatekeeper-config --to DIR, start both, bulkhead push",
        made.operator,
        made.signing_keys.len(),
        made.accounts.join(", "),
        home.display()
    );
    say(is_json, &text, &made)
}
