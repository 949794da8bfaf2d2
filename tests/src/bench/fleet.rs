//! A deployment with many tenants, a leaf and a forwarder each, whose pollers measure nothing of their own.

use std::path::PathBuf;

use anyhow::{Context, bail};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_bus::{PollerName, SiteName, StreamName, TenantSlug};
use bulkhead_runtime::{BusSettings, eventually};
use bulkhead_testkit::{LIMIT, TestDeployment};
use nkeys::KeyPair;
use sqlx::PgPool;

use crate::streams::look_at;

const SITE: &str = "site";
const POLLER: &str = "p1";
/// Nothing that is loaded here waits so long that it would count as late.
const BACKFILL_AFTER_S: i64 = 86_400;

/// One tenant's leaf, as a poller reaches it.
#[derive(Clone)]
pub struct Station {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    pub leaf: BusSettings,
    pub seed: String,
}

pub(super) struct Fleet {
    pub(super) deployment: TestDeployment,
    pub(super) witness: PgPool,
    pub(super) stations: Vec<Station>,
    /// How each station's forwarder reaches its leaf.
    forwarders: Vec<BusSettings>,
}

impl Fleet {
    pub(super) async fn start(tenants: usize, hub_servers: usize) -> anyhow::Result<Self> {
        let lines: Vec<String> = (0..tenants).map(|number| format!("t{number} enterprise {SITE}/{POLLER}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let home = TestDeployment::home_folder()?;
        let mut deployment = TestDeployment::start_in(home, &lines, |options| {
            options.hub_servers = Some(if hub_servers == 1 { HubSize::One } else { HubSize::Three });
        })
        .await?;
        let (mut stations, mut forwarders) = (Vec::new(), Vec::new());
        for (site, poller, child) in &mut deployment.up.pollers {
            let folder = deployment.up.layout.poller(&site.tenant, &site.site, poller);
            let (leaf, forwarder) = quiet_settings(folder.join("poller.toml"))?;
            let made = eventually("the leaf's streams", LIMIT, || async {
                look_at(&forwarder, &StreamName::EDGE).await.map_err(|error| format!("{error:#}"))
            });
            made.await?;
            child.kill()?;
            let seed = std::fs::read_to_string(folder.join("batch.nk")).context("read a batch key")?;
            let (tenant, site) = (site.tenant.clone(), site.site.clone());
            stations.push(Station { tenant, site, poller: poller.clone(), leaf, seed: seed.trim().to_owned() });
            forwarders.push(forwarder);
        }
        let witness = deployment.witness().await?;
        Ok(Self { deployment, witness, stations, forwarders })
    }

    pub(super) fn start_forwarders(&mut self) -> anyhow::Result<()> {
        self.deployment.up.pollers.iter_mut().try_for_each(|(_, _, child)| Ok(child.restart()?))
    }

    /// They stay connected and do nothing, and none has asked its leaf for anything: what is put there stays there.
    pub(super) async fn hold_forwarders(&mut self) -> anyhow::Result<()> {
        self.deployment.up.pollers.iter().try_for_each(|(_, _, child)| child.pause())?;
        for forwarder in &self.forwarders {
            let held = eventually("the forwarder's last question over", LIMIT, || async {
                let streams = look_at(forwarder, &StreamName::EDGE).await.map_err(|error| format!("{error:#}"))?;
                if streams.iter().all(|stream| stream.pulls == 0) { Ok(()) } else { Err(format!("{streams:?}")) }
            });
            held.await?;
        }
        Ok(())
    }

    pub(super) fn release_forwarders(&mut self) -> anyhow::Result<()> {
        Ok(self.deployment.up.pollers.iter().try_for_each(|(_, _, child)| child.resume())?)
    }

    /// Every process, by what it does.
    pub(super) fn processes(&mut self) -> Vec<(&'static str, u32)> {
        let mut all = Vec::new();
        let mut number = 0;
        while let Some(hub) = self.deployment.up.hub_child(number) {
            all.push(("hub", hub.pid()));
            number += 1;
        }
        let up = &self.deployment.up;
        all.push(("core", up.core.pid()));
        all.push(("database", up.postgres.child.pid()));
        all.extend(up.leaves.iter().map(|(_, child)| ("leaf", child.pid())));
        all.extend(up.pollers.iter().map(|(_, _, child)| ("forwarder", child.pid())));
        all
    }
}

impl Station {
    /// A poller of a deployment, by its own files.
    ///
    /// # Errors
    /// When a name is none or a file is missing.
    pub fn of(deployment: &TestDeployment, tenant: &str, site: &str, poller: &str) -> anyhow::Result<Self> {
        let (tenant, site, poller): (TenantSlug, SiteName, PollerName) =
            (tenant.parse()?, site.parse()?, poller.parse()?);
        let folder = deployment.up.layout.poller(&tenant, &site, &poller);
        let text = std::fs::read_to_string(folder.join("poller.toml")).context("read poller settings")?;
        let settings: toml::Table = toml::from_str(&text).context("read poller settings")?;
        let leaf = settings.get("leaf").cloned().context("a poller's settings name its leaf")?;
        let seed = std::fs::read_to_string(folder.join("batch.nk")).context("read a batch key")?;
        let leaf = leaf.try_into().context("read bus settings")?;
        Ok(Self { tenant, site, poller, leaf, seed: seed.trim().to_owned() })
    }

    pub(super) fn key(&self) -> anyhow::Result<KeyPair> {
        KeyPair::from_seed(&self.seed).context("read a batch key")
    }
}

/// Takes the checks out of a poller's settings; says how it and its forwarder reach the leaf.
fn quiet_settings(file: PathBuf) -> anyhow::Result<(BusSettings, BusSettings)> {
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let mut settings: toml::Table = toml::from_str(&text).context("read poller settings")?;
    settings.remove("checks");
    let Some(toml::Value::Table(forwarder)) = settings.get_mut("forwarder") else { bail!("it is no forwarder") };
    forwarder.insert("backfill_after_s".to_owned(), BACKFILL_AFTER_S.into());
    let forwarder = forwarder.get("leaf").cloned().context("a forwarder's settings name its leaf")?;
    std::fs::write(&file, toml::to_string(&settings)?).with_context(|| format!("write {}", file.display()))?;
    let leaf = settings.get("leaf").cloned().context("a poller's settings name its leaf")?;
    Ok((leaf.try_into().context("read bus settings")?, forwarder.try_into().context("read bus settings")?))
}
