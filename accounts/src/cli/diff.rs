//! `bulkhead diff`: every account as it should be, in the store, on the servers' disks and in their memory, and whose live
//! stream is not imported. Reads once, asks several at a time, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bulkhead_bus::{AccountKey, TenantSlug};
use bulkhead_claims::{AccountBody, decode_json};
use bulkhead_runtime::Chain;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::desk::{open, say, short};
use super::exit::{DRIFT, Failure};
use super::push::{check_names, is_wanted, not_asked};
use crate::resolver::{AccountLayers, Presence, compare, compare_presence, in_memories, list, on_disk};
use crate::tenancy::{Desired, Links, Tenancy, TenancyError, is_intake};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// Only these accounts, by name [default: all].
    pub(super) accounts: Vec<String>,
}

/// What the servers hold.
struct Seen {
    /// The keys that each server lists, by its name.
    listed: BTreeMap<String, BTreeSet<String>>,
    /// By account key.
    disks: BTreeMap<String, BTreeMap<String, usize>>,
    memories: BTreeMap<String, BTreeMap<String, Option<String>>>,
    /// Servers of the hub that do not answer.
    silent: Vec<String>,
}

async fn look(links: &Links, keys: &[String]) -> Result<Seen, Failure> {
    let system = links.system().await?;
    let listed = list(system, links.known.count()).await.map_err(|error| not_asked(&error))?;
    let silent = links.known.absent(listed.keys());
    let answering = listed.len();
    let disks = on_disk(system, keys, answering).await.map_err(|error| not_asked(&error))?;
    let memories = in_memories(system, keys, answering).await.map_err(|error| not_asked(&error))?;
    let listed = listed.into_iter().map(|(server, keys)| (server.name, keys)).collect();
    Ok(Seen { listed, disks, memories, silent })
}

/// Counts what it tells.
struct Report {
    is_json: bool,
    found: usize,
}

impl Report {
    fn tell<T: Serialize>(&mut self, text: &str, value: &T) -> Result<(), Failure> {
        self.found += 1;
        say(self.is_json, text, value)
    }

    /// Accounts that only one side has, and servers that say nothing.
    fn tell_presence(&mut self, names: &BTreeMap<String, String>, seen: &Seen, is_all: bool) -> Result<(), Failure> {
        for server in &seen.silent {
            let text = format!("{server}: does not answer: what it holds is not known");
            self.tell(&text, &json!({"server": server, "presence": "silent"}))?;
        }
        for presence in compare_presence(&names.keys().cloned().collect(), &seen.listed) {
            let (account, side, servers) = match &presence {
                Presence::Foreign { .. } if !is_all => continue,
                Presence::Foreign { account, servers } => (account, "on servers and not wanted", servers),
                Presence::Missing { account, servers } => (account, "not on servers", servers),
            };
            let name = names.get(account).unwrap_or(account);
            self.tell(&format!("{name}: {side}: {}", servers.join(", ")), &presence)?;
        }
        Ok(())
    }

    fn tell_account(&mut self, desired: Desired, seen: &Seen) -> Result<(), Failure> {
        let Desired { name, stored, body, trouble } = desired;
        if let Some(trouble) = trouble {
            let why = Chain(&trouble).to_string();
            self.tell(
                &format!("{name}: store: {why}"),
                &json!({"account": name, "layer": "store", "field": "token", "trouble": why}),
            )?;
        }
        let Some(stored) = stored else { return Ok(()) };
        let key = stored.key.as_str();
        let layers = AccountLayers {
            name,
            desired: body.map(serde_json::to_value).transpose().map_err(Failure::failed)?,
            disks: seen.disks.get(key).cloned().unwrap_or_default(),
            memories: seen.memories.get(key).cloned().unwrap_or_default(),
            store: Some(stored.token),
        };
        for difference in compare(&layers) {
            let (ours, theirs) = (short(difference.field.ours.as_ref()), short(difference.field.theirs.as_ref()));
            let text = format!(
                "{}: {}: {}: {theirs}, should be {ours}",
                difference.account, difference.layer, difference.field.field
            );
            self.tell(&text, &difference)?;
        }
        Ok(())
    }

    /// Tenants by their records against shards, the INTAKE accounts of the store, and those in the servers' memory.
    fn tell_live(&mut self, tenancy: &Tenancy, imported: &[(String, BTreeSet<String>)]) -> Result<(), Failure> {
        let wanted = tenancy.live_tenants()?;
        let shards = tenancy.intake.shards().map_err(TenancyError::Intake)?;
        let placed: BTreeMap<TenantSlug, AccountKey> = shards.into_values().flat_map(|shard| shard.tenants).collect();
        let all: BTreeSet<&TenantSlug> = wanted.keys().chain(placed.keys()).collect();
        for slug in all {
            let Some(key) = wanted.get(slug) else {
                let text = format!("{slug}: its live stream is imported still");
                self.tell(&text, &json!({"account": slug, "live_import": "unwanted"}))?;
                continue;
            };
            let mut gaps: Vec<&str> = if placed.get(slug) == Some(key) { vec![] } else { vec!["the shards"] };
            let lacks = imported.iter().filter(|(_, keys)| !keys.contains(key.as_str()));
            gaps.extend(lacks.map(|(layer, _)| layer.as_str()));
            if !gaps.is_empty() {
                let text = format!("{slug}: its live import is missing in {}", gaps.join(", "));
                self.tell(&text, &json!({"account": slug, "live_import": "missing", "where": gaps}))?;
            }
        }
        Ok(())
    }
}

/// The accounts that a token imports from.
fn imports_of(token: &str) -> BTreeSet<String> {
    let claims = decode_json(token).ok();
    let body: Option<AccountBody> = claims.and_then(|claims| serde_json::from_value(claims.nats).ok());
    body.into_iter().flat_map(|body| body.imports).map(|import| import.account).collect()
}

/// What all INTAKE accounts together import, by layer. A server that has not loaded one of them is left out.
fn live_layers(desired: &[Desired], seen: &Seen) -> Vec<(String, BTreeSet<String>)> {
    let shards: Vec<_> =
        desired.iter().filter(|one| is_intake(&one.name)).filter_map(|one| one.stored.as_ref()).collect();
    let in_store = shards.iter().flat_map(|stored| imports_of(&stored.token)).collect();
    let mut layers = vec![("the operator store".to_owned(), in_store)];
    for server in seen.listed.keys() {
        let tokens = shards.iter().map(|stored| seen.memories.get(stored.key.as_str())?.get(server)?.as_deref());
        if let Some(tokens) = tokens.collect::<Option<Vec<&str>>>() {
            let imported = tokens.into_iter().flat_map(imports_of).collect();
            layers.push((format!("the memory of {server}"), imported));
        }
    }
    layers
}

pub(super) async fn run_diff(home: &Path, args: &DiffArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    check_names(&tenancy, &args.accounts)?;
    let links = tenancy.connect().await?;
    let desired = tenancy.desired(&|name| is_wanted(&args.accounts, name))?;
    let key = |one: &Desired| tenancy.platform.operator.key_of(&one.name);
    let names: BTreeMap<String, String> =
        desired.iter().filter_map(|one| Some((key(one)?.to_string(), one.name.clone()))).collect();
    let keys: Vec<String> = names.keys().cloned().collect();
    let seen = look(&links, &keys).await?;
    let is_all = args.accounts.is_empty();
    let mut report = Report { is_json, found: 0 };
    report.tell_presence(&names, &seen, is_all)?;
    if is_all {
        report.tell_live(&tenancy, &live_layers(&desired, &seen))?;
    }
    for one in desired {
        report.tell_account(one, &seen)?;
    }
    if report.found > 0 {
        Err(Failure::silent(DRIFT))
    } else if is_json {
        Ok(())
    } else {
        say(false, "nothing differs", &())
    }
}
