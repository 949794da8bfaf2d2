//! `bulkhead server-config`: what each server of the hub is started with, for servers that `bulkhead up` does not run.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use clap::Args;
use serde::Serialize;

use super::desk::{Manner, open};
use super::exit::Failure;
use super::show::{Row, print_rows};
use crate::hub_files::{HUB_CONFIG, HubServerFiles, Roots, Routes};
use crate::hub_size::HubSize;
use crate::tenancy::{PlatformSettings, TenancyError, host_and_port};

/// Where servers connect to each other, unless the operator says otherwise.
const ROUTE_PORT: u16 = 6222;

pub(super) const HELP: &str = "Examples:\n  bulkhead server-config --to hub-files\n  bulkhead server-config --to hub-files --found-at /etc/bulkhead-hub --data /var/lib/bulkhead-hub\n\nEach server's folder goes to its machine whole; it holds private keys. Then: nats-server -c hub.conf, on every machine,\nand `bulkhead push` from here. Written again, the folder has new certificates, and all else is the same.";

#[derive(Debug, Args)]
pub(super) struct ServerConfigArgs {
    /// The folder that gets a folder for each server.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only this server, such as hub-2 [default: all].
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Where the files will be on the server's machine [default: where they are written].
    #[arg(long, value_name = "DIR")]
    found_at: Option<PathBuf>,
    /// Where the server keeps accounts and streams [default: the folder `data` beside its configuration].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the servers of a hub of three reach each other: one for each, in their order [default: the hosts of the hub's
    /// URLs, port 6222].
    #[arg(long = "route-url", value_name = "URL")]
    route_urls: Vec<String>,
    /// Only say what would be written.
    #[arg(long)]
    dry_run: bool,
}

/// Where one server listens and is reached.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    name: String,
    client_listen: String,
    leaf_listen: String,
    routes: Option<Routes>,
    hosts: Vec<String>,
}

/// The value for the server at `index`: its own, or the one that all share.
fn own(urls: &[String], index: usize, servers: usize) -> &str {
    let own = if urls.len() == servers { urls.get(index) } else { urls.first() };
    own.map_or("", String::as_str)
}

/// On a loopback address only there, otherwise on every address of the machine.
fn listen(url: &str) -> Result<String, String> {
    let (host, port) = host_and_port(url).ok_or_else(|| format!("{url:?} is no address: write tls://host:port"))?;
    let address = host.parse::<std::net::IpAddr>().ok();
    Ok(match address {
        Some(address) if address.is_loopback() => std::net::SocketAddr::new(address, port).to_string(),
        Some(_) | None => format!("0.0.0.0:{port}"),
    })
}

fn route_urls(settings: &PlatformSettings, given: &[String]) -> Result<Vec<String>, String> {
    let servers = settings.hub_servers.servers();
    let urls: Vec<String> = match given {
        [] => {
            let host = |url: &String| host_and_port(url).map_or("", |(host, _)| host).to_owned();
            let bracketed = |host: String| if host.contains(':') { format!("[{host}]") } else { host };
            settings.hub_urls.iter().map(|url| format!("tls://{}:{ROUTE_PORT}", bracketed(host(url)))).collect()
        }
        given => given.to_vec(),
    };
    let distinct: std::collections::BTreeSet<&String> = urls.iter().collect();
    if urls.len() != servers || distinct.len() != servers {
        let rule = "write --route-url tls://host:port once for each, in the order of the servers";
        return Err(format!("{servers} servers need as many addresses for each other, and these are {urls:?}: {rule}"));
    }
    Ok(urls)
}

/// Every server of the hub.
fn servers(settings: &PlatformSettings, given_routes: &[String]) -> Result<Vec<Server>, String> {
    let count = settings.hub_servers.servers();
    let routes = match settings.hub_servers {
        HubSize::One if given_routes.is_empty() => vec![],
        HubSize::One => return Err("a hub of one server has no routes: leave --route-url out".to_owned()),
        HubSize::Three => route_urls(settings, given_routes)?,
    };
    let mut servers = Vec::new();
    for number in settings.hub_servers.numbers() {
        let index = number - 1;
        let (client, leaf) = (own(&settings.hub_urls, index, count), own(&settings.leaf_urls, index, count));
        let mut urls = vec![client, leaf];
        urls.extend(routes.get(index).map(String::as_str));
        let mut hosts: Vec<String> =
            urls.into_iter().filter_map(host_and_port).map(|(host, _)| host.to_owned()).collect();
        hosts.sort();
        hosts.dedup();
        let routes = match routes.get(index) {
            None => None,
            Some(own) => {
                let urls = routes.iter().filter(|url| *url != own).cloned().collect();
                Some(Routes { listen: listen(own)?, urls })
            }
        };
        let name = HubSize::server_name(number);
        servers.push(Server { name, client_listen: listen(client)?, leaf_listen: listen(leaf)?, routes, hosts });
    }
    Ok(servers)
}

#[derive(Serialize)]
struct Written {
    server: String,
    config: PathBuf,
    clients: String,
    leaves: String,
    routes: Option<String>,
    hosts: Vec<String>,
    done: &'static str,
}

impl Row for Written {
    const HEADER: &'static [&'static str] =
        &["SERVER", "CONFIGURATION", "CLIENTS", "LEAVES", "ROUTES", "HOSTS", "DONE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![
            self.server.clone(),
            self.config.display().to_string(),
            self.clients.clone(),
            self.leaves.clone(),
            self.routes.clone().unwrap_or_else(|| "none".to_owned()),
            self.hosts.join(", "),
            self.done.to_owned(),
        ]
    }
}

fn absolute(what: &str, path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::invalid(what, error))
}

pub(super) fn run(home: &Path, args: &ServerConfigArgs, manner: Manner) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let invalid = |problem: String| Failure::invalid("server-config", std::io::Error::other(problem));
    let all = servers(&tenancy.settings, &args.route_urls).map_err(invalid)?;
    let names: Vec<&str> = all.iter().map(|server| server.name.as_str()).collect();
    if let Some(unknown) = args.server.as_ref().filter(|name| !names.contains(&name.as_str())) {
        return Err(invalid(format!("there is no server {unknown:?}: this hub has {}", names.join(", "))));
    }
    let to = absolute("--to", &args.to)?;
    let platform = &tenancy.platform;
    // A home of an earlier release gets them now; the next push puts them in force.
    platform.render_callout(tenancy.settings.hub_servers).map_err(TenancyError::Platform)?;
    let callout = platform.callout().map_err(TenancyError::Platform)?;
    let mut rows = Vec::new();
    for server in all.iter().filter(|server| args.server.as_ref().is_none_or(|name| *name == server.name)) {
        let folder = to.join(&server.name);
        let found_at = args.found_at.clone().unwrap_or_else(|| folder.clone());
        let data = args.data.clone().unwrap_or_else(|| found_at.join("data"));
        if let Some(relative) = [&found_at, &data].into_iter().find(|path| path.is_relative()) {
            let rule = "nats-server would look for it from wherever it is started: write a path that begins with /";
            return Err(invalid(format!("{} is not absolute: {rule}", relative.display())));
        }
        let files = HubServerFiles {
            server_name: server.name.clone(),
            client_listen: server.client_listen.clone(),
            leaf_listen: server.leaf_listen.clone(),
            routes: server.routes.clone(),
            hosts: server.hosts.clone(),
            roots: Roots::Copied,
            folder: &folder,
            found_at: &found_at,
            data: &data,
        };
        if !manner.is_dry {
            let written = files.write(&platform.authority, &platform.operator, &callout, platform.now);
            written.map_err(Failure::failed)?;
        }
        rows.push(Written {
            server: server.name.clone(),
            config: folder.join(HUB_CONFIG),
            clients: server.client_listen.clone(),
            leaves: server.leaf_listen.clone(),
            routes: server.routes.as_ref().map(|routes| routes.listen.clone()),
            hosts: server.hosts.clone(),
            done: if manner.is_dry { "would be written" } else { "written" },
        });
    }
    print_rows(&rows, manner.is_json, now_ms())
}

impl ServerConfigArgs {
    pub(super) fn manner(&self, is_json: bool) -> Manner {
        Manner { is_json, is_dry: self.dry_run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(hub_urls: &[&str], leaf_urls: &[&str], hub_servers: HubSize) -> PlatformSettings {
        let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
        PlatformSettings {
            trust_domain: "example".to_owned(),
            hub_servers,
            hub_urls: owned(hub_urls),
            leaf_urls: owned(leaf_urls),
            enrolment_urls: vec![],
            database_url_file: None,
        }
    }

    #[test]
    fn a_hub_of_three_has_its_own_hosts_and_the_others_routes() {
        let urls = ["tls://a.example:4222", "tls://b.example:4222", "tls://[2001:db8::3]:4222"];
        let all = servers(&settings(&urls, &["tls://sites.example:7422"], HubSize::Three), &[]).unwrap();
        assert_eq!(all.iter().map(|server| server.name.as_str()).collect::<Vec<_>>(), ["hub-1", "hub-2", "hub-3"]);
        assert_eq!(all[1].hosts, ["b.example", "sites.example"]);
        assert_eq!((all[1].client_listen.as_str(), all[1].leaf_listen.as_str()), ("0.0.0.0:4222", "0.0.0.0:7422"));
        let routes = all[1].routes.as_ref().unwrap();
        assert_eq!(routes.urls, ["tls://a.example:6222", "tls://[2001:db8::3]:6222"]);
        assert_eq!(routes.listen, "0.0.0.0:6222");
    }

    #[test]
    fn servers_on_one_machine_need_routes_that_differ() {
        let urls = ["tls://127.0.0.1:1", "tls://127.0.0.1:2", "tls://127.0.0.1:3"];
        let settings = settings(&urls, &urls, HubSize::Three);
        let error = servers(&settings, &[]).unwrap_err();
        assert!(error.contains("--route-url"), "{error}");
        let routes = ["tls://127.0.0.1:11", "tls://127.0.0.1:12", "tls://127.0.0.1:13"].map(str::to_owned);
        let all = servers(&settings, &routes).unwrap();
        assert_eq!(all[2].routes.as_ref().unwrap().listen, "127.0.0.1:13");
        assert_eq!(all[2].client_listen, "127.0.0.1:3");
        assert!(servers(&settings, &routes[..2]).is_err());
    }

    #[test]
    fn a_hub_of_one_has_no_routes() {
        let settings = settings(&["tls://127.0.0.1:1"], &["tls://127.0.0.1:2"], HubSize::One);
        assert_eq!(servers(&settings, &[]).unwrap()[0].routes, None);
        let error = servers(&settings, &["tls://127.0.0.1:3".to_owned()]).unwrap_err();
        assert!(error.contains("no routes"), "{error}");
    }
}
