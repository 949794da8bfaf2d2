//! `bulkhead gatekeeper-config`: what each gatekeeper is started with, for those that `bulkhead up` does not run.

use std::path::{Path, PathBuf};

use bulkhead_bus::UserName;
use bulkhead_runtime::now_ms;
use clap::Args;
use serde::Serialize;

use super::desk::{Manner, open};
use super::exit::Failure;
use super::show::{Row, print_rows};
use crate::gatekeeper_files::{GATEKEEPER_CONFIG, GatekeeperFiles, gatekeeper_names, own_servers};
use crate::hub_files::Roots;
use crate::tenancy::TenancyError;

pub(super) const HELP: &str = "Examples:\n  bulkhead gatekeeper-config --to gatekeeper-files\n  bulkhead gatekeeper-config --to gatekeeper-files --name gatekeeper-3 --found-at /etc/bulkhead-gatekeeper --data /var/lib/bulkhead-gatekeeper\n\nEach gatekeeper's folder goes to its machine whole. It holds the key that opens every tenant's scoped signing keys:\nguard that machine like an authority. Then: bulkhead-gatekeeper --config gatekeeper.toml. In a hub of three each runs\nbeside its server; without any, nobody new is let in.";

#[derive(Debug, Args)]
pub(super) struct GatekeeperConfigArgs {
    /// The folder that gets a folder for each gatekeeper.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only this one; any name that no other gatekeeper has [default: one for each server of the hub, and at least two].
    #[arg(long)]
    name: Option<UserName>,
    /// Where the files will be on its machine [default: where they are written].
    #[arg(long, value_name = "DIR")]
    found_at: Option<PathBuf>,
    /// Where it keeps what it knows and what it has not reported yet [default: the folder `data` beside its settings].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where it is asked about its health, such as 127.0.0.1:8102 [default: nowhere].
    #[arg(long, value_name = "ADDRESS")]
    health_listen: Option<std::net::SocketAddr>,
    /// Only say what would be written.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Written {
    gatekeeper: String,
    config: PathBuf,
    done: &'static str,
}

impl Row for Written {
    const HEADER: &'static [&'static str] = &["GATEKEEPER", "SETTINGS", "DONE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.gatekeeper.clone(), self.config.display().to_string(), self.done.to_owned()]
    }
}

pub(super) fn run(home: &Path, args: &GatekeeperConfigArgs, manner: Manner) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let invalid = |problem: String| Failure::invalid("gatekeeper-config", std::io::Error::other(problem));
    let to = std::path::absolute(&args.to).map_err(|error| Failure::invalid("--to", error))?;
    let names: Vec<String> = match &args.name {
        Some(name) => vec![name.to_string()],
        None => gatekeeper_names(tenancy.settings.hub_servers),
    };
    let mut rows = Vec::new();
    for name in names {
        let folder = to.join(&name);
        let found_at = args.found_at.clone().unwrap_or_else(|| folder.clone());
        let data = args.data.clone().unwrap_or_else(|| found_at.join("data"));
        if let Some(relative) = [&found_at, &data].into_iter().find(|path| path.is_relative()) {
            let rule =
                "it would be looked for from wherever the gatekeeper is started: write a path that begins with /";
            return Err(invalid(format!("{} is not absolute: {rule}", relative.display())));
        }
        if !manner.is_dry {
            // A home of an earlier release gets them now; the next push puts them in force.
            let rendered = tenancy.platform.render_callout(tenancy.settings.hub_servers);
            rendered.map_err(TenancyError::Platform)?;
            let files = GatekeeperFiles {
                name: name.clone(),
                hub_urls: own_servers(&name, &tenancy.platform.hub_urls),
                health_listen: args.health_listen.map(|address| address.to_string()),
                log_format: "json",
                roots: Roots::Copied,
                folder: &folder,
                found_at: &found_at,
                data: &data,
            };
            files.write(&tenancy.platform).map_err(Failure::failed)?;
        }
        rows.push(Written {
            config: folder.join(GATEKEEPER_CONFIG),
            gatekeeper: name,
            done: if manner.is_dry { "would be written" } else { "written" },
        });
    }
    print_rows(&rows, manner.is_json, now_ms())
}

impl GatekeeperConfigArgs {
    pub(super) fn manner(&self, is_json: bool) -> Manner {
        Manner { is_json, is_dry: self.dry_run }
    }
}
